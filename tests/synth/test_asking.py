"""Several answers to one question: the plurality filter and the band of difficulty."""

from __future__ import annotations

from pathlib import Path

import pytest

from phikit.errors import PhikitError
from phikit.records import Sample, read_records, write_records
from phikit.stage import Context
from phikit.synth import asking
from phikit.synth.replies import ReplyStore, Request
from phikit.synth.stored_teacher import Answer, Budget, StoredTeacher


def question(text: str, answer: str = "", verifier: str = "math") -> Sample:
    return Sample(
        kind="q", source="synthetic", messages=({"role": "user", "content": text},),
        answer=answer, verifier=verifier,
    )  # fmt: skip


def asked(*answers: str, given: str = "") -> asking.Asked:
    texts = tuple(f"So.\nAnswer: {a}" if a else "I wonder." for a in answers)
    return asking.Asked(question("q?", given), texts, tuple(f"r.{i}" for i in range(len(texts))), 0)


@pytest.mark.parametrize(
    ("answers", "reason", "truth"),
    [
        (("4", "4", "4", "4"), "all agree", None),
        (("1", "2", "3", "4"), "all differ", None),
        (("4", "4", "5", "5"), "a tie", None),
        (("", "", "", ""), "no answer states a result", None),
        (("1/2", "0.5", "3", "7"), "a plurality", "1/2"),
        (("4", "4", "4", ""), "a plurality", "4"),
    ],
)
def test_the_plurality_is_the_truth(
    answers: tuple[str, ...], reason: str, truth: str | None
) -> None:
    sample, verdict = asking.judge_plurality(asked(*answers), asking.PluralityConfig())
    assert verdict.reason.startswith(reason) and verdict.passed == (truth is not None)
    assert sample.verdicts[-1] == verdict
    if truth:
        assert sample.answer == truth and sample.response.endswith(f"Answer: {truth}")
        assert sample.parents[1].startswith("r.")


def test_an_answer_that_was_given_is_remembered_when_the_plurality_is_another() -> None:
    sample, _ = asking.judge_plurality(asked("4", "4", "5", given="7"), asking.PluralityConfig())
    assert sample.answer == "4" and sample.meta["answer_was"] == "7"
    assert sample.meta["votes"] == [2, 1]


class Student(StoredTeacher):
    """Knows `right` of every four answers to a question with that many exclamation marks."""

    async def _generate(self, request: Request, attempt: int) -> Answer:
        self.calls += 1
        right = request.messages[-1]["content"].count("!")
        return Answer(f"Answer: {4 if request.draw % 4 < right else request.draw + 10}", 1, 1)


@pytest.fixture
def student(monkeypatch: pytest.MonkeyPatch) -> list[Student]:
    made: list[Student] = []

    def give(config: object, inputs: object, store: ReplyStore, seed: int) -> Student:
        made.append(Student("student", Budget(), store))
        return made[-1]

    monkeypatch.setattr(asking, "teacher_of", give)
    return made


def test_questions_inside_the_band_are_kept_and_nothing_is_asked_twice(
    student: list[Student], tmp_path: Path
) -> None:
    samples = [question("2 + 2?" + "!" * n, "4", "number") for n in range(5)]
    write_records(tmp_path / "in" / "samples.parquet", samples, Sample)
    config = asking.DifficultyConfig(answers=8, low=0.2, high=0.8)
    summary = asking.run_difficulty(Context(tmp_path), config, {"samples": tmp_path / "in"})
    kept = read_records(tmp_path / "samples.parquet", Sample)
    assert [s.meta["pass_rate"] for s in kept] == [0.25, 0.5, 0.75]
    assert summary["reasons"] == {"inside": 3, "too easy": 1, "too hard": 1}
    dropped = read_records(tmp_path / "rejected.parquet", Sample)
    assert [s.verdicts[-1].score for s in dropped] == [0.0, 1.0]
    assert [s.parents for s in kept] == [(s.id,) for s in samples[1:4]]
    asking.run_difficulty(Context(tmp_path), config, {"samples": tmp_path / "in"})
    assert [s.calls for s in student] == [40, 0]
    write_records(tmp_path / "in" / "samples.parquet", [question("x", "4", "")], Sample)
    with pytest.raises(PhikitError, match="names no verifier"):
        asking.run_difficulty(Context(tmp_path), config, {"samples": tmp_path / "in"})


def test_the_plurality_stage(student: list[Student], tmp_path: Path) -> None:
    samples = [question("2 + 2?" + "!" * n, "4", "number") for n in (0, 2, 4)]
    write_records(tmp_path / "in" / "samples.parquet", samples, Sample)
    config = asking.PluralityConfig(answers=8)
    summary = asking.run_plurality(Context(tmp_path), config, {"samples": tmp_path / "in"})
    (kept,) = read_records(tmp_path / "samples.parquet", Sample)
    assert kept.answer == "4" and kept.meta["votes"][0] == 4
    assert summary["reasons"] == {"a plurality": 1, "all agree": 1, "all differ": 1}
    assert summary["agree_with_given"] == summary["had_an_answer"] == 1
