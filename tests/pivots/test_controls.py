"""What pivots are held against: whole answers for as many tokens, and random tokens."""

from __future__ import annotations

from pathlib import Path

from phikit.pivots.controls import RandomConfig, ResponsesConfig, run_random, run_responses
from phikit.pivots.read import search_folder
from phikit.records import Pair, read_records
from phikit.stage import Context


def made_by(folder: Path) -> list[Pair]:
    return read_records(folder / "pairs.parquet", Pair)


def test_whole_answers_spend_what_the_search_spent(
    found: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "responses").mkdir()
    inputs = {"model": made["model"], "search": found, "problems": made["problems"]}
    config = ResponsesConfig(per_problem=16, max_tokens=40, batch=64)
    summary = run_responses(Context(dir=tmp_path / "responses"), config, inputs)
    budget = search_folder(found).record["summary"]["tokens"]
    once = 2 * 16 * 40  # what both problems take, at most, when they are asked once
    assert summary["problems"] == 2 and budget > once  # so they are asked again
    assert budget <= summary["tokens"] <= budget + once
    pairs = made_by(tmp_path / "responses")
    assert len(pairs) == summary["pairs"] > 0
    assert all(p.kind == "rollout" and p.chosen_ids != p.rejected_ids for p in pairs)
    assert len({p.chosen_ids for p in pairs}) > len(pairs) // 2  # later answers are others


def test_as_many_random_tokens_as_pivots(
    found: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "random").mkdir()
    inputs = {"model": made["model"], "search": found}
    run_random(Context(dir=tmp_path / "random"), RandomConfig(batch=64), inputs)
    pairs = made_by(tmp_path / "random")
    assert len(pairs) == search_folder(found).record["summary"]["pairs"]
    assert all(len(p.chosen_ids) == len(p.rejected_ids) == 1 for p in pairs)
    assert all(p.chosen_ids != p.rejected_ids and p.kind == "random" for p in pairs)
