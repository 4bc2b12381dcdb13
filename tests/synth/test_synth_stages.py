from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from phikit.errors import PhikitError
from phikit.records import Document, Sample, read_records, write_records
from phikit.stage import Context
from phikit.synth.collect import Collector, normalised, shares
from phikit.synth.stages import STAGES
from phikit.synth.teacher import Candidate
from phikit.verify.base import ByName, Problem

VERBS = {stage.verb: stage for stage in STAGES}


def run(verb: str, folder: Path, seed: int = 0, **settings: Any) -> dict[str, Any]:
    stage = VERBS[verb]
    inputs = settings.pop("inputs", {})
    folder.mkdir(parents=True)
    return stage.run(Context(dir=folder, seed=seed), stage.config(**settings), inputs)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items") / "items"
    run("synth.items", folder, count=200, recall_count=4, refusal_share=0.1)
    return folder


def candidate(question: str, answer: str = "4", response: str = "Answer: 4") -> Candidate:
    return Candidate("t", "synthetic", question, response, answer, "math")


def test_items_are_questions_with_gold_answers(items: Path) -> None:
    problems = read_records(items / "items.parquet", Sample)
    assert len(problems) == 200
    assert all(len(p.messages) == 1 and p.messages[0]["role"] == "user" for p in problems)
    assert all(p.answer and p.verifier and not p.response for p in problems)
    assert {p.verifier for p in problems} == {"math", "exact", "choice", "code", "refusal"}
    assert len({p.id for p in problems}) == 200
    recalls = read_records(items / "recall.parquet", Sample)
    assert sorted({p.meta["length"] for p in recalls}) == [128, 256, 512, 900]
    assert len(recalls) == 16


def test_samples_carry_passed_verdicts_and_both_forms(items: Path, tmp_path: Path) -> None:
    summary = run(
        "synth.procedural", tmp_path / "s", count=300, recall_count=10, long_documents=3,
        inputs={"items": items},
    )  # fmt: skip
    samples = read_records(tmp_path / "s" / "samples.parquet", Sample)
    assert summary["accepted"] == len(samples) == 300 + 10 + 6
    assert all(s.verdicts and all(v.passed for v in s.verdicts) for s in samples)
    assert all(s.text and s.response for s in samples)
    assert {s.source for s in samples} == {"synthetic", "code"}
    for counts in summary["types"].values():
        gone = sum(n for key, n in counts.items() if key not in ("asked", "accepted"))
        assert counts["asked"] == counts["accepted"] + gone


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("synth.procedural", tmp_path / name, seed, count=150, long_documents=1)
    a, b, c = ((tmp_path / n / "samples.parquet").read_bytes() for n in "abc")
    assert a == b
    assert a != c


def test_no_training_prompt_equals_an_item(items: Path, tmp_path: Path) -> None:
    """Even with the items' own stream, which writes the very same problems."""
    summary = run(
        "synth.procedural", tmp_path / "s", count=120, seed_tag="eval", inputs={"items": items}
    )
    asked = {
        normalised(Problem.of(item).prompt)
        for name in ("items.parquet", "recall.parquet")
        for item in read_records(items / name, Sample)
    }
    samples = read_records(tmp_path / "s" / "samples.parquet", Sample)
    assert not asked & {normalised(Problem.of(s).prompt) for s in samples}
    assert summary["disjointness"]["dropped"] > 50
    assert summary["disjointness"]["items"] == len(asked)


def test_different_tags_share_few_problems(tmp_path: Path) -> None:
    prompts = []
    for tag in ("train", "eval"):
        run("synth.procedural", tmp_path / tag, count=300, seed_tag=tag)
        samples = read_records(tmp_path / tag / "samples.parquet", Sample)
        prompts.append({normalised(Problem.of(s).prompt) for s in samples})
    assert len(prompts[0] & prompts[1]) < 15


def test_a_wrong_solution_is_rejected_with_its_verdict() -> None:
    collector = Collector(verifier=ByName())
    assert collector.add([candidate("a?"), candidate("b?", answer="5")], "t", 9) == 1
    (rejected,) = collector.rejected
    assert not rejected.verdicts[0].passed
    assert collector.summary()["types"]["t"] == {
        "accepted": 1, "asked": 2, "rejected by math": 1,
    }  # fmt: skip


def test_a_failing_program_rejects_and_ends_no_other() -> None:
    def with_program(i: int, program: str) -> Candidate:
        return Candidate("t", "code", f"{i}?", "Answer: 4", "4", "math", program=program)

    collector = Collector(verifier=ByName())
    programs = ["assert 1 == 1", "assert 1 == 2", "import os; os._exit(0)", "x = 1"]
    collector.add([with_program(i, p) for i, p in enumerate(programs)], "t", 9)
    assert [s.messages[0]["content"] for s in collector.accepted] == ["0?", "3?"]
    assert collector.tally["t"]["rejected by execution"] == 2


def test_duplicates_up_to_case_and_spacing_are_dropped() -> None:
    collector = Collector()
    same = [candidate("How many, Mia?"), candidate("how  many Mia ?"), candidate("How few, Mia?")]
    assert collector.add([*same, None], "t", 9) == 2
    assert collector.tally["t"]["duplicate"] == 1
    assert collector.tally["t"]["not written"] == 1


def test_a_type_that_runs_out_ends_with_fewer() -> None:
    collector = Collector()
    assert collector.fill("t", 10, lambda r: [candidate(f"{i % 3}") for i in r]) == 3
    assert collector.tally["t"]["asked"] == 30


def test_shares_add_up() -> None:
    assert shares(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert sum(shares(997, {"a": 0.2, "b": 3, "c": 1.7}).values()) == 997


def test_rewrites_and_reversals_come_from_documents(tmp_path: Path) -> None:
    documents = [
        Document(
            text="m.twice\n\nReturn the number multiplied by two. It works for floats as well, "
            "and it never raises an error.\n",
            source="web",
            meta={"name": "m.twice", "kind": "function documentation"},
        ),
        Document(
            text='def twice(n):\n    """Return n times two."""\n    return n * 2\n',
            source="code",
            meta={"name": "twice"},
        ),
    ]
    write_records(tmp_path / "d" / "documents.parquet", documents, Document)
    run(
        "synth.procedural", tmp_path / "s", count=0, rewrites=9, reversals=9,
        inputs={"documents": tmp_path / "d"},
    )  # fmt: skip
    samples = read_records(tmp_path / "s" / "samples.parquet", Sample)
    kinds = {s.kind: s for s in samples}
    assert set(kinds) == {"cloze", "definition", "reversal"}
    assert kinds["cloze"].parents == (documents[0].id,)
    assert kinds["cloze"].source == "web_rewrites"
    assert kinds["reversal"].parents == (documents[1].id,)
    assert "return n * 2" in kinds["reversal"].response


def test_rewrites_without_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PhikitError, match="has none"):
        run("synth.procedural", tmp_path / "s", count=0, rewrites=5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"difficulty": 6}, "less than or equal to 5"),
        ({"difficulties": {"trace": 0}}, "greater than or equal to 1"),
        ({"types": {"chnges": 1}}, "did you mean 'changes'"),
        ({"types": {"changes": 0}}, "greater than 0"),
        ({"style": "long"}, "'short' or 'thought'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        VERBS["synth.procedural"].config(**settings)
