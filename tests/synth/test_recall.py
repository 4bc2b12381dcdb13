from __future__ import annotations

import re

import pytest

from phikit.errors import PhikitError
from phikit.synth import recall
from phikit.synth.teacher import pretraining_prompt


def tokens(text: str) -> float:
    return len(text.split())


@pytest.mark.parametrize("length", [60, 200, 800])
def test_the_prompt_has_the_length_asked_for(length: int) -> None:
    for i in range(20):
        question = recall.exercise("0/t", i, length, keys=4, measure=tokens).question
        assert length - 10 <= tokens(question) <= length + 2


def test_the_answer_is_stated_once_and_the_names_are_different() -> None:
    for i in range(100):
        candidate = recall.exercise("0/t", i, 600, keys=6)
        facts = re.findall(r"The code of (\w+) is (\d+)\.", candidate.question)
        assert len({name for name, _ in facts}) == 6
        asked = re.search(r"What is the code of (\w+)\?$", candidate.question)
        assert asked and dict(facts)[asked[1]] == candidate.answer


def test_a_long_document_asks_several_times_and_begins_as_an_item_does() -> None:
    candidate = recall.long_document("0/t", 3, 2000)
    assert 1900 < len(candidate.text) < 2050
    assert candidate.text.startswith(pretraining_prompt(candidate.sample()) + " ")
    facts = dict(re.findall(r"The code of (\w+) is (\d+)\. ", candidate.text))
    answers = re.findall(r"code of (\w+)\?\nSolution: The code of \w+ is (\d+)\.", candidate.text)
    assert len(answers) == 6
    assert all(facts[name] == code for name, code in answers)


def test_too_many_keys_for_the_length_are_refused() -> None:
    with pytest.raises(PhikitError, match="40 codes do not fit"):
        recall.exercise("0/t", 0, 300, keys=40)


def test_other_indices_are_other_items() -> None:
    assert recall.exercise("0/t", 1, 400) == recall.exercise("0/t", 1, 400)
    assert recall.exercise("0/t", 1, 400) != recall.exercise("0/t", 2, 400)
