"""What to answer and what to decline: the rules on written answers, and the stage on a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from phikit.errors import PhikitError
from phikit.pivots import domains
from phikit.pivots.read import pair_folder
from phikit.pivots.refusals import Heard, RefusalsConfig, Said, _pairs, _samples, run_refusals
from phikit.records import Pair, Sample, read_records, write_records
from phikit.stage import Context

CONFIG = RefusalsConfig(samples=8, sometimes=2)
ASKED = Sample(kind="trivia", source="user", text="Who?", verifier="exact", answer="Ann")
NEVER = Sample(kind="bogus", source="user", text="Who not?", verifier="refusal")
RIGHT, WRONG = Said((1, 2, 3, 4, 5, 6), "Ann"), Said((1, 2, 3, 4, 9, 6), "Bob")
SAME = Said((1, 2, 3, 4, 5, 7), "Cy")  # begins as RIGHT does
DECLINES = Said((7, 7, 7, 7, 7, 7), "I don't know.")


def made(sample: Sample, heard: Heard) -> tuple[list[Pair], list[Sample], Counter[str]]:
    tally: Counter[str] = Counter()
    pairs = list(_pairs(sample, (0,), heard, DECLINES, CONFIG, tally))
    return pairs, list(_samples(sample, heard, DECLINES, CONFIG, tally)), tally


def test_sometimes_right_and_sometimes_wrong() -> None:
    pairs, samples, tally = made(ASKED, Heard([RIGHT] * 4, [WRONG] * 4, []))
    assert [(p.chosen_ids, p.rejected_ids) for p in pairs] == [
        (RIGHT.ids[:5], DECLINES.ids[:5]), (DECLINES.ids[:5], WRONG.ids[:5])
    ]  # fmt: skip
    assert {p.kind for p in pairs} == {"refusal"} and samples == []
    assert domains.count(pairs)[domains.UNKNOWN] == 2
    assert tally["right > refusal"] == tally["refusal > wrong"] == 1


def test_usually_right_answers_and_usually_wrong_declines() -> None:
    pairs, samples, _ = made(ASKED, Heard([RIGHT] * 7, [WRONG], []))
    assert [p.evidence["rule"] for p in pairs] == ["right > refusal"]
    assert samples[0].response == "Ann" and samples[0].verifier == "exact"
    pairs, samples, _ = made(ASKED, Heard([RIGHT], [WRONG] * 7, []))
    assert [p.evidence["rule"] for p in pairs] == ["refusal > wrong"]
    assert samples[0].response == "I don't know." and samples[0].verifier == "refusal"


def test_what_cannot_be_answered_is_always_declined() -> None:
    pairs, samples, _ = made(NEVER, Heard([], [WRONG] * 3, [DECLINES] * 5))
    assert [p.evidence["rule"] for p in pairs] == ["refusal > wrong"]
    assert samples[0].response == "I don't know."


def test_a_beginning_that_is_right_and_wrong_is_in_no_pair() -> None:
    pairs, _, tally = made(ASKED, Heard([RIGHT] * 4, [SAME] * 4, []))
    assert pairs == [] and tally["beginnings both right and wrong"] == 1


def test_the_stage(inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "refused"
    folder.mkdir()
    config = RefusalsConfig(samples=64, max_tokens=40, batch=64, usually=0.6)
    summary = run_refusals(Context(dir=folder), config, inputs)
    (folder / "stage.json").write_text('{"verb": "pivots.refusals", "inputs": {}}')
    pairs = pair_folder(folder).pairs()
    assert summary["problems"] == 4 and summary["pairs"] == len(pairs) > 0
    assert all(1 <= len(p.chosen_ids) <= 5 and 1 <= len(p.rejected_ids) <= 5 for p in pairs)
    assert all(p.chosen_ids != p.rejected_ids for p in pairs)
    assert summary["domains"] == {domains.UNKNOWN: len(pairs)}
    samples = read_records(folder / "samples.parquet", Sample)
    assert summary["samples"] == len(samples)
    assert all(s.messages[-1]["role"] == "assistant" for s in samples)


def test_a_problem_without_room_is_counted_and_the_rest_go_on(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    problems = read_records(inputs["problems"] / "samples.parquet", Sample)
    long = replace(problems[0], id="", messages=({"role": "user", "content": "why? " * 4000},))
    asked = tmp_path / "asked"
    write_records(asked / "samples.parquet", [long, *problems], Sample)
    config = RefusalsConfig(samples=2, max_tokens=4, batch=64)
    folder = tmp_path / "some"
    folder.mkdir()
    done = run_refusals(Context(dir=folder), config, inputs | {"problems": asked})
    assert (done["problems"], done["too_long"]) == (4, 1)
    write_records(asked / "samples.parquet", [long], Sample)
    with pytest.raises(PhikitError, match=r"asked: none of 1 problems leaves room(.|\n)*shorter"):
        run_refusals(Context(dir=folder), config, inputs | {"problems": asked})


def test_a_refusal_that_does_not_decline() -> None:
    with pytest.raises(ValidationError, match="does not say that it declines"):
        RefusalsConfig(refusals=("It is 12.",))
