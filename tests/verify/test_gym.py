"""Problems of reasoning-gym and their own scorers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

from phikit.errors import PhikitError
from phikit.records import Sample, read_records, write_records
from phikit.stage import Context
from phikit.synth.gym import GymConfig, run_gym
from phikit.verify.base import ByName, Problem
from phikit.verify.gym import gold

DATASETS = {"chain_sum": 2.0, "leg_counting": 1.0, "fraction_simplification": 1.0}
SETTINGS = {"chain_sum": {"max_terms": 2, "max_digits": 1}}


def run(folder: Path, inputs: dict[str, Path] | None = None, **changed: object) -> list[Sample]:
    folder.mkdir()
    given: dict[str, object] = {"count": 12, "datasets": DATASETS, "settings": SETTINGS}
    run_gym(Context(dir=folder, seed=3), GymConfig.model_validate(given | changed), inputs or {})
    name = "samples.parquet" if changed.get("solved") else "items.parquet"
    return read_records(folder / name, Sample)


@pytest.mark.slow  # it imports reasoning-gym twice
def test_problems_are_judged_by_their_own_scorers(tmp_path: Path) -> None:
    items = run(tmp_path / "items", instruction="End with a line Answer:")
    assert len(items) == 12 and len({i.id for i in items}) == 12
    assert {i.kind for i in items} == set(DATASETS)
    assert all(i.messages[-1]["role"] == "user" and "Answer:" in i.messages[0]["content"]
               for i in items)  # fmt: skip
    problems = [Problem.of(i) for i in items]
    answers = [str(i.meta["answer"]) for i in items]
    right = ByName().verify(
        [(p, f"Let me see.\nAnswer: {a}") for p, a in zip(problems, answers, strict=True)]
    )
    last = ByName().verify([(p, f"so\n{a}") for p, a in zip(problems, answers, strict=True)])
    wrong = ByName().verify([(p, "Answer: pears") for p in problems])
    silent = ByName().verify([(p, "") for p in problems])
    assert all(v.passed for v in right + last)
    assert not any(v.passed for v in wrong + silent)
    assert "expected" in wrong[0].reason

    same = run(tmp_path / "again", instruction="End with a line Answer:")
    assert [i.id for i in same] == [i.id for i in items]
    solved = run(tmp_path / "solved", {"items": tmp_path / "items"}, solved=True, seed_tag="x")
    assert all(s.response == f"Answer: {s.meta['answer']}" for s in solved)
    other = Sample(kind="sums", source="user", text="1 + 1?", verifier="math", answer="2")
    write_records(tmp_path / "others" / "samples.parquet", [other], Sample)
    both = run(tmp_path / "both", {"others": tmp_path / "others"})
    assert len(both) == 13 and "sums" in {i.kind for i in both}


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"chain_sums": 1.0}, "did you mean 'chain_sum'"),
        ({"countdown": 1.0}, "runs text as Python"),
        ({"game_of_life_halting": 1.0}, "cannot tell right from wrong"),
    ],
)
@pytest.mark.slow
def test_datasets_that_are_refused(
    datasets: dict[str, float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PhikitError, match=message):
        run(tmp_path / "x", datasets=datasets, settings={})


def test_a_wrong_setting_names_its_dataset(tmp_path: Path) -> None:
    with pytest.raises(PhikitError, match="settings of reasoning-gym's chain_sum"):
        run(tmp_path / "x", datasets={"chain_sum": 1.0}, settings={"chain_sum": {"terms": 1}})


@pytest.mark.parametrize("answer", ["42", "[]", '{"dataset": "chain_sum"}'])
def test_an_answer_of_another_form(answer: str) -> None:
    problem = Problem("?", answer, "gym")
    with pytest.raises(PhikitError, match="not the answer of a reasoning-gym problem"):
        ByName().verify([(problem, "Answer: 1")])


def test_a_scorer_that_evaluates_is_not_run() -> None:
    problem = Problem("?", gold("number_sorting", {"answer": "[1]"}), "gym")
    with pytest.raises(PhikitError, match="runs text as Python"):
        ByName().verify([(problem, "Answer: 1")])


def test_without_reasoning_gym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(PhikitError, match=r"\[gym\]"):
        run(tmp_path / "x")
