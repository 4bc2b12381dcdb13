import random
import unicodedata

import pytest

from phikit.data.decontaminate import Decontaminator, item_text, sample_text
from phikit.data.folding import words
from phikit.data.item_index import DecontaminationConfig
from phikit.records import Sample

ITEM = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May?"
)
OTHER = (
    "The context manager's exit method is called in every case, and it may swallow an exception "
    "that was raised within the block; the reference describes this in its own section."
)
ITEMS = [("gsm-1", ITEM), ("ref-1", OTHER), ("short-1", "What is 7 times 8?")]


def check(text: str, **settings):
    return Decontaminator(ITEMS, DecontaminationConfig(**settings)).check(text)


look_alike = str.maketrans("aeopcxyiAEOPCT", "аеорсхуіАЕОРСТ")
fullwidth = str.maketrans({c: chr(ord(c) + 0xFEE0) for c in map(chr, range(33, 127))})


@pytest.mark.parametrize(
    "disguise",
    [
        str.upper,
        lambda t: t.replace(",", "").replace(".", " ...").replace("?", "!!"),
        lambda t: t.replace(" ", " \n\t "),
        lambda t: t.replace(" ", "\u00a0"),
        lambda t: t.replace(" ", "-"),
        lambda t: "\u200b".join(t),
        lambda t: t.replace(" ", "\u200b"),
        lambda t: t.replace(" ", "\u3164"),
        lambda t: t.replace(" ", "&nbsp;").replace("N", "&#78;").replace("m", "&#x6D;"),
        lambda t: t.replace("a", "ᴀ").replace("o", "օ").replace("A", "Ꭺ"),
        lambda t: t.translate(look_alike),
        lambda t: t.translate(fullwidth),
        lambda t: t.replace("a", "à").replace("o", "ö"),
        lambda t: unicodedata.normalize("NFD", t.replace("e", "é")),
        lambda t: "".join(chr(0x1D41A + ord(c) - 97) if c.islower() else c for c in t),
        lambda t: f"Some text before it. {t} And some after it, which goes on for a while.",
        lambda t: " ".join(f"*{w}*" for w in t.split()),
    ],
)
def test_no_disguise_hides_an_item(disguise) -> None:
    found = check(disguise(ITEM))
    assert found is not None
    assert (found.verdict, found.item, found.item_text) == ("contaminated", "gsm-1", ITEM)


def test_other_texts_are_clean() -> None:
    assert check("") is None
    assert check("Natalia sold clips in April.") is None
    assert check("A function object is what a def statement creates when it is executed.") is None


def test_one_13_gram_is_enough_and_12_words_are_not() -> None:
    taken = ITEM.split()[:13]
    filler = "unrelated words follow here and go on for a good while " * 20
    found = check(" ".join(taken) + " " + filler)
    assert found is not None
    assert (found.rule, found.shared) == ("13-gram", " ".join(words(" ".join(taken))))
    assert (
        check(" ".join(taken[:12]) + " " + filler, contaminated_ratio=0.9, partial_ratio=0.9)
        is None
    )


def test_the_ratio_has_two_thresholds() -> None:
    """6 of the 25 7-grams of the item are in the text, which has more."""
    text = " ".join(ITEM.split()[:12]) + " but Peter ate " + " ".join(f"word{n}" for n in range(60))
    found = check(text)
    total = len(words(ITEM)) - 6
    assert found is not None
    assert (found.verdict, found.rule) == ("partial", "7-gram ratio")
    assert found.ratio == pytest.approx(6 / total, abs=1e-3)
    assert check(text, contaminated_ratio=0.24).verdict == "contaminated"
    assert check(text, partial_ratio=0.4) is None
    short = check(" ".join(ITEM.split()[:12]))  # all of the text is the item's
    assert (short.verdict, short.ratio) == ("contaminated", 1.0)


def test_items_too_short_for_ngrams_are_found_as_a_whole() -> None:
    assert check("what is 7 × times 8").item == "short-1"
    assert check("So, what is 7 times 8? It is 56.") is None


TEMPLATE = (
    "{name} has {a} {thing} and buys {b} more at the market, and then each of {c} friends brings "
    "one more to the house. How many {thing} are there in the house now?"
)


def problem(rng: random.Random) -> str:
    return TEMPLATE.format(
        name=rng.choice(["Tom", "Ann", "Bob", "Eve", "Sam"]),
        thing=rng.choice(["apples", "coins", "books"]),
        a=rng.randrange(10, 99),
        b=rng.randrange(10, 99),
        c=rng.randrange(2, 9),
    )


def test_template_wording_is_allowed_but_copies_are_found() -> None:
    rng = random.Random(1)
    items = [problem(rng) for _ in range(2)]
    texts = [t for t in (problem(rng) for _ in range(300)) if t not in items]
    texts += [items[0].upper(), items[1]]
    decontaminator = Decontaminator(enumerate_ids(items))
    assert decontaminator.count(texts) == list(range(len(texts)))
    before = [t for t in texts if decontaminator.check(t)]
    assert len(before) > 200  # the template's own 13-grams are in most texts
    allowed = decontaminator.settle()
    assert allowed["13-grams"] > 0
    found = [t for t in texts if (f := decontaminator.check(t)) and f.verdict == "contaminated"]
    assert set(texts[-2:]) <= set(found)
    assert len(found) < 30  # copies, and the few that share most of an item's own numbers


def enumerate_ids(texts: list[str]) -> list[tuple[str, str]]:
    return [(f"item-{n}", text) for n, text in enumerate(texts)]


def test_wording_common_to_the_items_is_allowed_without_any_texts() -> None:
    rng = random.Random(2)
    items = [problem(rng) for _ in range(30)]
    clean = [t for t in (problem(rng) for _ in range(50)) if t not in items]

    def flagged(texts: list[str], common_items: int) -> int:
        settings = DecontaminationConfig(common_items=common_items)
        decontaminator = Decontaminator(enumerate_ids(items), settings)
        found = [decontaminator.check(text) for text in texts]
        return sum(f is not None and f.verdict == "contaminated" for f in found)

    assert flagged(clean, common_items=100) == len(clean)
    assert flagged(clean, common_items=2) < len(clean) / 2
    assert flagged(items, common_items=2) == len(items)


def test_copies_of_one_text_make_nothing_common() -> None:
    decontaminator = Decontaminator(ITEMS)
    for n in range(50):
        decontaminator.count([ITEM.replace(" ", " " * (n % 3 + 1)) + " And so on."])
    assert decontaminator.settle() == {"13-grams": 0, "7-grams": 0}
    assert decontaminator.check(ITEM + " And so on.").verdict == "contaminated"


def test_count_names_every_text_that_check_would_find() -> None:
    decontaminator = Decontaminator(ITEMS)
    filler = "Nothing of any item is in here, so there is nothing to check. " * 5000
    texts = [filler, "WHAT is 7 times 8", "", filler, " ".join(ITEM.split()[3:10]), filler]
    assert decontaminator.count(texts) == [1, 4]
    assert list(decontaminator.check_all(texts)) == [1, 4]
    for number, text in enumerate(texts):
        assert decontaminator.check_all(texts).get(number) == decontaminator.check(text)


def test_no_items_find_nothing() -> None:
    decontaminator = Decontaminator([])
    assert decontaminator.count([ITEM, ""]) == []
    assert decontaminator.settle() == {"13-grams": 0, "7-grams": 0}
    assert decontaminator.check(ITEM) is None


def test_the_ledger_shows_both_texts_where_they_meet() -> None:
    filler = "word and other words " * 1000
    found = check(filler + ITEM + filler)
    row = found.row("doc-1")
    assert row["document"] == "doc-1"
    assert ITEM in row["text"]
    assert len(row["text"]) == 2000
    assert row["item_text"] == ITEM


def test_samples_are_compared_with_all_they_say() -> None:
    sample = Sample(
        kind="k", source="synthetic", text="t",
        messages=({"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}),
    )  # fmt: skip
    assert item_text(sample) == "ask"
    assert sample_text(sample) == "ask\nsay"
    assert sample_text(Sample(kind="k", source="s", text="only")) == "only"


def test_shuffled_choices_and_changed_numbers_are_told() -> None:
    """The choices' order changes few 7-grams; the numbers change more, and leave the wording."""
    question = (
        "Which of these gases makes up the largest part of the air that people on Earth breathe "
        "at the level of the sea on an ordinary day? "
    )
    items = [("q-1", question + "A) oxygen B) nitrogen C) argon D) carbon dioxide")]
    shuffled = question + "A) argon B) carbon dioxide C) oxygen D) nitrogen"
    found = Decontaminator(items).check(shuffled)
    assert found is not None and found.verdict == "contaminated"
    found = check(ITEM.replace("48", "72"))
    assert found is not None and found.verdict == "contaminated"


def test_an_item_in_many_variants_is_still_found() -> None:
    """All the wording of the first is common, and nothing else would tell it."""
    variants = [ITEM, f"{ITEM} Explain.", f"{ITEM} Think first.", f"Solve this now. {ITEM}"]
    decontaminator = Decontaminator(enumerate_ids(variants))
    filler = "Some other text stands before and after it, and it goes on for quite a while. "
    found = decontaminator.check(filler + ITEM + filler)
    assert found is not None and found.verdict == "contaminated"


def plainly(texts: list[str], items: list[str], settings: DecontaminationConfig):
    """The rule by sets of tuples of words: of each text (verdict, ratio, item), or None."""

    def grams(text: str, n: int) -> set[tuple[str, ...]]:
        w = words(text)
        return {tuple(w[i : i + n]) for i in range(len(w) - n + 1)}

    def counted(n: int) -> set[tuple[str, ...]]:
        of_items = [grams(i, n) for i in items]
        common = {g for own in of_items for g in own
                  if sum(g in o for o in of_items) >= settings.common_items}  # fmt: skip
        # items of which nothing would be left keep what they have
        common -= set().union(*(own for own in of_items if own <= common))
        different = {tuple(words(t)): t for t in texts}.values()
        often = settings.common_documents
        frequent = {g for own in of_items for g in own - common
                    if sum(g in grams(t, n) for t in different) >= often}  # fmt: skip
        return set().union(*of_items) - common - frequent

    long, short = settings.long_ngram, settings.short_ngram
    long_counted, short_counted = counted(long), counted(short)
    allowed = set().union(*(grams(i, short) for i in items)) - short_counted
    results = []
    for text in texts:
        ratios = [
            len(grams(text, short) & grams(i, short) & short_counted)
            / max(min(len(grams(i, short) & short_counted), len(grams(text, short) - allowed)), 1)
            for i in items
        ]
        best = max(range(len(items)), key=lambda i: (ratios[i], -i))
        if words(text) in [words(i) for i in items] or grams(text, long) & long_counted:
            found = ("contaminated", 1.0, None)
        elif ratios[best] < settings.partial_ratio:
            found = None
        else:
            bad = ratios[best] >= settings.contaminated_ratio
            found = ("contaminated" if bad else "partial", round(ratios[best], 4), f"i{best}")
        results.append(found)
    return results


@pytest.mark.parametrize("seed", range(30))
def test_batches_are_judged_as_the_rule_says(seed: int) -> None:
    draw = random.Random(seed)
    settings = DecontaminationConfig(
        long_ngram=draw.choice((3, 5, 6)), short_ngram=draw.choice((1, 2, 3)),
        common_documents=draw.choice((2, 4, 100)), common_items=draw.choice((2, 3, 100)),
    )  # fmt: skip

    def sentence(most: int) -> str:
        return " ".join(draw.choice("abcdefgh") for _ in range(draw.randrange(1, most)))

    items = list({tuple(t.split()): t for t in (sentence(10) for _ in range(6))}.values())
    texts = [f"{sentence(6)} {draw.choice([*items, ''])} {sentence(8)}" for _ in range(40)]
    texts += items[:2]
    decontaminator = Decontaminator([(f"i{n}", i) for n, i in enumerate(items)], settings)
    decontaminator.count(texts)
    decontaminator.settle()
    together = decontaminator.check_all(texts)
    assert together == {n: f for n, t in enumerate(texts) if (f := decontaminator.check(t))}
    for number, expected in enumerate(plainly(texts, items, settings)):
        found = together.get(number)
        if expected is None or found is None:
            assert found is expected
        else:
            assert (found.verdict, found.ratio) == expected[:2]
            assert expected[2] in (None, found.item)
