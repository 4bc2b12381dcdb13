"""Demands on an answer's form: each kind, kept and not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phikit.errors import PhikitError
from phikit.verify.base import ByName, Problem
from phikit.verify.demands import NEEDS
from phikit.verify.instructions import CHECKS, InstructionsVerifier, sentences
from phikit.verify.problems import load_problems


def answer_of(*demands: tuple[str, dict[str, Any]]) -> str:
    return json.dumps([{"id": name, "kwargs": kwargs} for name, kwargs in demands])


def judged(text: str, *demands: tuple[str, dict[str, Any]]) -> Any:
    return ByName().verify([(Problem("?", answer_of(*demands), "instructions", id="p1"), text)])[0]


RELATION = {"relation": "at least"}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {  # arguments, one that keeps, one that fails
    "change_case:capital_word_frequency": (
        {"capital_relation": "less than", "capital_frequency": 2},
        "One NASA team went.", "NASA and ESA went.",
    ),
    "change_case:english_capital": (
        {}, "THE WEATHER IS LOVELY TODAY AND WE WALK.", "The weather is lovely today.",
    ),
    "change_case:english_lowercase": (
        {}, "the weather is lovely today and we walk.", "THE weather is lovely today.",
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Say why. "}, "say why.\nBecause.", "Because. Say why.",
    ),
    "combination:two_responses": ({}, "One.\n******\nTwo.", "One.\n******\nOne."),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2}, "[name] of [town]", "[name] of town",
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."}, "Bye.\nP. S. More.", "Bye. PS more",
    ),
    "detectable_format:constrained_response": ({}, "My answer is yes.", "Yes."),
    "detectable_format:json_format": ({}, '```json\n{"a": [1]}\n```', '{"a": [1}'),
    "detectable_format:multiple_sections": (
        {"section_spliter": "PART", "num_sections": 2}, "PART 1\na\nPART 2\nb", "PART 1\na PART b",
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2}, "* a\n- b\nend", "* a\n- b\n- c",
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2}, "*a* and *b c*", "*a* and * *",
    ),
    "detectable_format:title": ({}, "<<Song>>\nla", "<< >>\nla"),
    "keywords:existence": ({"keywords": ["a+b", "sun"]}, "A+B in the Sun", "aab sun"),
    "keywords:forbidden_words": ({"forbidden_words": ["can"]}, "a candle", "a Can"),
    "keywords:frequency": (
        {"keyword": "sun", "frequency": 2, **RELATION}, "Sun, sunny", "sun",
    ),
    "keywords:letter_frequency": (
        {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Quick quiz", "quick",
    ),
    "language:response_language": (
        {"language": "de"}, "Das Wetter ist heute schön und wir gehen.", "We walk in the sun.",
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "First.\n\n\"So, we go.", "First.\n\nWe go.",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2}, "a\n***\nb\n***\n", "a\n***\n***\nb",
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "less than"}, "Dr. No has 3.5 cats.", "One. Two!",
    ),
    "length_constraints:number_words": ({"num_words": 3, **RELATION}, "one two-three", "one two"),
    "punctuation:no_comma": ({}, "a; b", "a, b"),
    "startend:end_checker": ({"end_phrase": "Is it? "}, 'And so? "Is it?"', "Is it? Yes."),
    "startend:quotation": ({}, ' "so" ', '"so'),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_each_demand_is_kept_or_not(name: str) -> None:
    if name in ("language:response_language", "change_case:english_capital",
                "change_case:english_lowercase"):  # fmt: skip
        pytest.importorskip("langdetect")
    kwargs, kept, broken = CASES[name]
    assert judged(kept, (name, kwargs)).passed, "should be kept"
    failed = judged(broken, (name, kwargs))
    assert not failed.passed and name in failed.reason


def test_all_must_be_kept_and_the_score_is_the_share() -> None:
    both = (("punctuation:no_comma", {}), ("startend:quotation", {}))
    half = judged("no marks", *both)
    assert (half.passed, half.score) == (False, 0.5)
    assert judged('"no marks"', *both).passed
    assert not judged(" ", ("punctuation:no_comma", {})).passed  # nothing said is nothing kept


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("No end", 1), ("Mr. A. Smith paid $3.50. He left!", 2), ('Why?! "So." Done', 3)],
)
def test_sentences(text: str, count: int) -> None:
    assert sentences(text) == count


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('[{"id": "punctuation:no_coma"}]', "punctuation:no_comma"),
        ("no commas", "list of demands"),
        ('[{"id": "keywords:existence", "kwargs": {}}]', "keywords"),
        ('[{"id": "length_constraints:number_words", "kwargs": '
         '{"num_words": 3, "relation": "about"}}]', "about"),
        ('[{"id": "length_constraints:number_words", "kwargs": '
         '{"num_words": "three", "relation": "at least"}}]', "'three'"),
        ('[{"id": "keywords:existence", "kwargs": {"keywords": "sun"}}]', "a list of texts"),
    ],
)  # fmt: skip
def test_a_bad_demand_is_an_error_that_names_it(answer: str, said: str) -> None:
    with pytest.raises(PhikitError) as e:
        ByName().verify([(Problem("?", answer, "instructions", id="p7"), "text")])
    assert said in f"{e.value} {e.value.__dict__}"


IMPOSSIBLE = {
    "fewer than none": [
        ("length_constraints:number_words", {"relation": "less than", "num_words": 0}),
    ],
    "more than the most": [
        ("length_constraints:number_words", {"relation": "at least", "num_words": 50}),
        ("length_constraints:number_words", {"relation": "less than", "num_words": 50}),
    ],
    "two numbers of one thing": [
        ("detectable_format:number_bullet_lists", {"num_bullets": 3}),
        ("detectable_format:number_bullet_lists", {"num_bullets": 4}),
    ],
    "a paragraph past the last": [
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "so"},
        )
    ],
    "a comma and none": [
        ("punctuation:no_comma", {}),
        ("startend:end_checker", {"end_phrase": "Yes, it is."}),
    ],
    "a word and none": [
        ("keywords:existence", {"keywords": ["moon", "Sun"]}),
        ("keywords:frequency", {"keyword": "sun", "relation": "less than", "frequency": 1}),
    ],
    "capitals and none": [
        ("change_case:english_capital", {}),
        ("change_case:english_lowercase", {}),
    ],
}


@pytest.mark.parametrize("demands", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_demands_that_nothing_keeps_to_are_refused_when_they_are_read(
    demands: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    row = {"prompt": "?", "verifier": "instructions", "answer": answer_of(*demands)}
    path.write_text(json.dumps(row))
    with pytest.raises(PhikitError, match=r"p\.jsonl:1: .*nothing keeps to") as e:
        load_problems(path)
    assert ("both" in str(e.value)) == (len(demands) == 2)
    for demand in demands if len(demands) > 1 else ():
        path.write_text(json.dumps({**row, "answer": answer_of(demand)}))
        assert load_problems(path)


def test_demands_that_a_response_keeps_to_are_not_refused() -> None:
    for name, (kwargs, _, _) in CASES.items():
        assert InstructionsVerifier().impossible(answer_of((name, kwargs)), "here") == ""
    every = [c for c in CASES.items() if c[0].startswith(("length", "keywords", "detectable"))]
    both = answer_of(*((name, kwargs) for name, (kwargs, _, _) in every))
    assert InstructionsVerifier().impossible(both, "here") == ""
    assert set(NEEDS) == {name for name, (kwargs, _, _) in CASES.items() if kwargs}
    assert all(set(NEEDS[name]) == set(CASES[name][0]) for name in NEEDS)
