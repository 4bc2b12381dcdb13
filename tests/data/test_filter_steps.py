"""Filters as a recipe names them: published rules, languages, personal data, licences."""

import json
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from phikit.data import published_rules as rules
from phikit.data.english_words import sentences_in, words_of
from phikit.data.filter_steps import FilteringConfig, apply
from phikit.data.licences import PERMISSIVE, allowed, licence_of
from phikit.data.personal import replace_personal
from phikit.records import Document

PROSE = (
    "The garden behind the old house was larger than anyone had thought, and in the spring it was "
    "full of birds that nobody could name. A neighbour told us that her mother had planted the "
    "apple trees when she was a girl, long before the road was built. We sat there most evenings, "
    "talked about the books we had read, and listened to the bells of the village church. In the "
    "autumn the leaves lay so deep that the children lost their shoes in them. "
    "Nobody minded that at all."
)


def document(text: str, source: str = "web", **more) -> Document:
    return Document(text=text, source=source, **more)


def test_gopher_fineweb_and_c4_let_prose_pass() -> None:
    assert rules.gopher_quality(PROSE) is None
    assert rules.gopher_repetition(PROSE) is None
    assert rules.fineweb_quality(PROSE) is None
    assert rules.c4_lines(PROSE, terminal=True) == (PROSE, None)


@pytest.mark.parametrize(
    "text, reason",
    [
        (PROSE[:150], "number of words"),
        (" ".join(["extraordinarily"] * 40 + ["the", "and"] * 10), "mean word length"),
        (PROSE + " #" * 20, "hashes"),
        ("\n".join(f"- {s}" for s in PROSE.split(", ")), "bullet lines"),
        (PROSE + " 12345 678910" * 30, "few words with letters"),
        (PROSE.replace("the", "a").replace("The", "A").replace("that", "as").replace(" of", " on")
         .replace(" and", " or").replace("have", "own").replace(" to", " at"), "few stop words"),
    ],
)  # fmt: skip
def test_gophers_quality_rules(text, reason) -> None:
    if reason == "bullet lines":
        text = text + " and so on and so forth the"
    assert rules.gopher_quality(text) == reason


@pytest.mark.parametrize(
    "text, reason",
    [
        (f"{PROSE}\n\n{PROSE}\n\n{PROSE}", "duplicate paragraphs"),
        (PROSE + "\nOn we go with it all." * 12, "duplicate lines"),
        (PROSE[:250] + " very big" * 60, "frequent 2-gram"),
        (PROSE + " x ".join([PROSE[:90]] * 3), "duplicate 5-grams"),
    ],
)
def test_gophers_repetition_rules(text, reason) -> None:
    assert rules.gopher_repetition(text) == reason


#: made by `benchmarks/filters.py --expected`: texts and what datatrove 0.10.1 says of them
EXPECTED = json.loads((Path(__file__).parent / "datatrove.json").read_text())


@pytest.mark.parametrize("rule", ["gopher_quality", "gopher_repetition", "fineweb", "c4"])
def test_verdict_and_reason_are_datatroves(rule) -> None:
    check = {
        "gopher_quality": rules.gopher_quality,
        "gopher_repetition": rules.gopher_repetition,
        "fineweb": rules.fineweb_quality,
        "c4": lambda text: rules.c4_lines(text, terminal=True)[1],
    }[rule]
    assert [check(row["text"]) for row in EXPECTED] == [row[rule] for row in EXPECTED]
    reasons = {row[rule] for row in EXPECTED}
    assert None in reasons and len(reasons) > 2  # the texts reach the rule's branches


def test_c4_without_its_rule_of_line_ends_is_datatroves() -> None:
    ours = [rules.c4_lines(row["text"], terminal=False)[1] for row in EXPECTED]
    assert ours == [row["c4_any_ending"] for row in EXPECTED]


@pytest.mark.parametrize(
    "text, words",
    [
        ("Don't: it's well-known.", "Do n't : it 's well - known ."),
        ("(e.g., Mr. O'Neil's \"U.S. plan\")", "( e.g. , Mr. O'Neil 's \" U.S. plan \" )"),
        ("at https://a.example/x?y=1, 10km, 3.5%!", "at https://a.example/x?y=1 , 10 km , 3.5 % !"),
        ("and/or x=y, (c)2020 foo.Bar a...b", "and/or x = y , ( c)2020 foo . Bar a ... b"),
        ("They’re here :) cannot", "They ’re here :) can not"),
        ("#include <a.h> -- $5", "# include < a.h > -- $ 5"),
    ],
)  # fmt: skip
def test_words_are_those_of_spacys_rules(text, words) -> None:
    assert list(words_of(text)) == words.split()


def test_sentences_end_as_spacys_do() -> None:
    assert sentences_in("") == 0
    assert sentences_in("no end at all") == 1
    assert sentences_in('Mr. A. went. "Really?" Yes!! So. So') == 5
    assert (sentences_in("One. %"), sentences_in("One.\t%")) == (1, 2)
    assert sentences_in("a.b.c is 3.5 wide... and so on") == 1


def test_long_pieces_without_a_blank_take_linear_time() -> None:
    started = time.process_time()
    for piece in ("=" * 200_000, "a.b:" * 50_000, ")." * 100_000, "\"'" * 100_000, ":)" * 100_000):
        assert "".join(words_of(piece)) == piece
    assert time.process_time() - started < 20


def test_finewebs_rules() -> None:
    menu = "\n".join(f"Item {n}" for n in range(40))
    assert rules.fineweb_quality(menu) == "few lines end a sentence"
    assert rules.fineweb_quality("\n".join(f"Item {n}." for n in range(40))) == "short lines"
    assert rules.fineweb_quality(f"{PROSE}\n{PROSE}") == "duplicate lines"
    listed = "\n".join(f"a_very_long_name_of_something_number_{n}." for n in range(40))
    assert rules.fineweb_quality(listed) == "many lines for its words"


def test_c4_drops_lines_and_documents() -> None:
    lines = PROSE.replace(". ", ".\n")
    text = f"{lines}\nPlease enable Javascript to see this.\nHome page\nread our privacy policy."
    kept, reason = rules.c4_lines(text, terminal=False)
    assert reason is None and kept.startswith(lines[:-20]) and "avascript" not in kept
    assert rules.c4_lines(lines + "\nvoid f() { return; }", terminal=False)[1] == "curly bracket"
    assert rules.c4_lines(lines + "\nLorem ipsum dolor sit.", terminal=False)[1] == "lorem ipsum"
    assert rules.c4_lines(lines + "\nin Javascript: f = {}", terminal=False)[1] is None
    assert (
        rules.c4_lines("One sentence stands here.", terminal=False)[1] == "fewer than 5 sentences"
    )
    assert "no full stop" not in rules.c4_lines(lines + "\na line with no full stop", True)[0]
    assert "no full stop" in rules.c4_lines(lines + "\na line with no full stop", False)[0]


def test_the_language_is_told_and_noted() -> None:
    pytest.importorskip("lingua")
    settings = FilteringConfig(prose=("language",), languages=("en", "de"))
    german = "Der Garten hinter dem alten Haus war größer, als alle gedacht hatten. " * 5
    french = "Le jardin derrière la vieille maison était plus grand que prévu. " * 5
    assert apply(document(PROSE), settings).language == "en"
    found = apply(document(german), settings)
    assert found.language == "de" and found.meta["filters"]["language"]["probability"] > 0.9
    assert apply(document(french), settings) == "language: fr"
    with pytest.raises(Exception, match="no language has the code 'xx'"):
        apply(document(PROSE), FilteringConfig(prose=("language",), candidates=("en", "xx")))


def test_personal_data_is_replaced_and_counted_and_examples_stay() -> None:
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    text = (
        f"Mail anna.schmidt@firma.de or call +49 30 901820 or (212) 555-0123, from 93.184.216.34; "
        f"the key is {key}, the card 4111 1111 1111 1111. See user@example.com, 127.0.0.1, "
        "192.168.1.10, version 1.2.3.4000, ISBN 978-3-16-148410-0, 1234567890123 and 10:20:30."
    )
    clean, found = replace_personal(text)
    assert found == {"card": 1, "email": 1, "ip": 1, "key": 1, "phone": 2}
    for secret in ("anna", "901820", "555-0123", "93.184", key, "4111"):
        assert secret not in clean
    for harmless in ("user@example.com", "127.0.0.1", "192.168.1.10", "1.2.3.4000",
                     "978-3-16-148410-0", "1234567890123", "10:20:30"):  # fmt: skip
        assert harmless in clean
    before = document(text)
    after = apply(before, FilteringConfig(prose=("personal",)))
    assert after.text == clean and after.parents == (before.id,) and after.id != before.id
    assert after.meta["filters"]["personal"] == found
    dropped = apply(before, FilteringConfig(prose=("personal",), personal="drop"))
    assert dropped == "personal data: card, email, ip, key, phone"


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4 of it", "pip install foo==1.2.3.4", "see section 3.1.4.1", "§ 8.8.4.4",
        "Chrome/8.0.55.2 (X11)", "f(x)=+100 200 300", "y = +12 3456 78", "+3.14159 26535",
        "+1234 567 890 = x", "git@github.com:some/thing.git", "std::a::b 2001::x",
        'class="sk-estimator-doc-link-of-a-long-name"', "id 3111111111111117",
    ],
)  # fmt: skip
def test_versions_sums_and_names_are_no_personal_data(text) -> None:
    assert replace_personal(text) == (text, {})


def test_shortened_addresses_are_found() -> None:
    text = "from 2606:4700::1111, not from 2001:db8::1 or fe80::1"
    assert replace_personal(text)[0] == "from <ip>, not from 2001:db8::1 or fe80::1"


def test_licences_are_told_from_the_head_of_a_file() -> None:
    assert licence_of("// SPDX-License-Identifier: GPL-2.0 OR MIT\nint x;") == "GPL-2.0 OR MIT"
    mit = "# Permission is hereby granted, free of\n# charge, to any person"
    assert licence_of(mit) == "MIT"
    assert licence_of("/* Licensed under the Apache License,\n * Version 2.0 */") == "Apache-2.0"
    gpl = "under the terms of the GNU General Public License, version 3"
    assert licence_of(gpl) == "GPL-3.0"
    assert licence_of("x = 1") == ""
    assert allowed("GPL-2.0 OR MIT", PERMISSIVE) and not allowed("GPL-2.0 AND MIT", PERMISSIVE)
    assert licence_of("// Licensed under the MIT license.") == "MIT"
    both = "// SPDX-License-Identifier: MIT AND (GPL-3.0 OR LGPL-3.0) */"
    assert licence_of(both) == "MIT AND (GPL-3.0 OR LGPL-3.0)"
    assert allowed("mit", PERMISSIVE) and not allowed(licence_of(both), PERMISSIVE)
    assert allowed("MIT AND (GPL-3.0 OR ISC)", PERMISSIVE)
    assert allowed("GPL-2.0 OR MIT AND Apache-2.0 WITH LLVM-exception", PERMISSIVE)
    for wrong in ("", "MIT AND", "(MIT", "MIT)", "OR MIT", "MIT Apache-2.0"):
        assert not allowed(wrong, PERMISSIVE)
    assert allowed("CC BY 4.0", ("CC BY 4.0",)) and not allowed("CC BY 4.0", PERMISSIVE)
    settings = FilteringConfig(code=("licence",))
    assert apply(document(mit, "code"), settings).licence == "MIT"
    assert apply(document(gpl, "code"), settings) == "licence: GPL-3.0"
    assert apply(document("x = 1", "code"), settings) == "licence: none named"
    assert apply(document("x = 1", "code", licence="PSF-2.0"), settings).licence == "PSF-2.0"


def test_a_filter_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="did you mean 'gopher_quality'"):
        FilteringConfig(prose=("gopher_qualty",))


def test_an_empty_document_is_rejected_by_every_list() -> None:
    for names in ((), ("gopher_quality",), ("fineweb", "c4"), ("compression",)):
        assert apply(document(" \n"), FilteringConfig(prose=names)) == "too short"
