"""The stage on a real engine: a tiny random model whose first token alone decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from phikit.engine.local import LocalEngine
from phikit.errors import PhikitError
from phikit.pivots.stages import STAGES, PivotsConfig, run_search
from phikit.records import Pair, Sample, read_records, write_records
from phikit.stage import Context

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]


CONFIG = PivotsConfig(problems=3, max_tokens=5, batch=64, measure=8, tokens_per_question=20_000)


def test_the_stage_finds_the_deciding_token(inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pivots"
    folder.mkdir()
    ctx = Context(dir=folder)
    summary = run_search(ctx, CONFIG, inputs)
    pivots = [json.loads(line) for line in (folder / "pivots.jsonl").read_text().splitlines()]
    traces = [json.loads(line) for line in (folder / "searches.jsonl").read_text().splitlines()]
    pairs = read_records(folder / "pairs.parquet", Pair)
    assert summary["questions"] == len(traces) == 3
    assert summary["pivots"] == len(pivots) == 3 and summary["pairs"] == len(pairs)
    assert {p["position"] for p in pivots} == {0}
    assert all(abs(p["delta"]) > 0.2 and p["lower"] <= p["delta"] <= p["upper"] for p in pivots)
    assert sum(k["pairs"] for k in summary["by_kind"].values()) == len(pairs)
    assert all(len(p.prompt_ids) == len(pivots[0]["prefix_ids"]) for p in pairs)
    assert summary["tokens"] == ctx.cost.tokens_generated > 0 and ctx.cost.flops > 0
    for trace in traces:
        solution = trace["solutions"][0]
        assert len(solution["tokens"]) == len(solution["ids"])
        assert "question" in trace["prompt"]


def test_a_killed_stage_leaves_the_same_files(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    whole = LocalEngine.generate

    def dying(self: LocalEngine, requests: Sequence[object]) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return whole(self, requests)  # type: ignore[arg-type]

    folders = [tmp_path / "whole", tmp_path / "resumed"]
    for folder in folders:
        folder.mkdir()
    summary = run_search(Context(dir=folders[0]), CONFIG, inputs)
    monkeypatch.setattr(LocalEngine, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        run_search(Context(dir=folders[1]), CONFIG, inputs)
    assert not (folders[1] / "pairs.parquet").exists()
    assert run_search(Context(dir=folders[1]), CONFIG, inputs) == summary
    files = sorted(p.relative_to(folders[0]) for p in folders[0].rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(folders[1]) for p in folders[1].rglob("*") if p.is_file())
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file


def test_problems_without_a_verifier_are_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PhikitError, match=r"neither samples\.parquet nor items\.parquet"):
        run_search(Context(dir=tmp_path), CONFIG, {**inputs, "problems": tmp_path})
    write_records(tmp_path / "samples.parquet", [Sample(kind="k", source="s", text="t")], Sample)
    with pytest.raises(PhikitError, match="no sample names a verifier"):
        run_search(Context(dir=tmp_path), CONFIG, {**inputs, "problems": tmp_path})


def test_the_stage_says_what_it_needs() -> None:
    stage = STAGES[0]
    assert stage.verb == "pivots.search" and stage.resumable
    assert stage.inputs == ("model", "problems")
    assert stage.estimate and "0.1 M" in stage.estimate(PivotsConfig(total_tokens=100_000)).size
    with pytest.raises(ValueError, match="low must be below high"):
        PivotsConfig(low=0.9, high=0.1)
