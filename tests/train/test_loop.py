"""The loop: resuming to the bit, cutting batches, losses that are not finite, stored curves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from train_fixtures import tiny_model, tiny_rows
from train_runs import STEPS, run

from phikit.data.pack import Batches, Example, pack
from phikit.errors import PhikitError
from phikit.stage import Context
from phikit.train import loop
from phikit.train.objectives.next_token import NextToken
from phikit.train.settings import OptimiserSettings, TrainSettings
from phikit.train.state import Checkpoints

HERE = Path(__file__).parent
CURVES = HERE / "curves.json"
New = Callable[..., Context]


@pytest.mark.parametrize("name", STEPS)
def test_stored_curve(name: str, new_context: New) -> None:
    """Unchanged arithmetic, unchanged losses; `python train_runs.py curves` writes them anew."""
    ctx = new_context(name)
    run(name, ctx)
    losses = [row["loss"] for row in ctx.metrics.rows]
    stored = json.loads(CURVES.read_text())[name]
    # rounding moves what is computed in bfloat16, and which tokens are drawn; in float32 SwiGLU
    # scaled by 1.001 moves every curve by 1.4e-5 or more
    tolerance = {"bf16": 2e-2, "muon": 1e-3, "grpo": 1e-3}.get(name, 1e-5)
    assert losses == pytest.approx(stored, rel=tolerance, abs=tolerance)


class Killed(Exception):
    pass


def interrupted(name: str, new_context: New, stops: list[int]) -> Context:
    """Runs until each of the steps in turn, as if killed there, and then to the end."""
    for stop in stops:
        ctx = new_context("interrupted")

        class Stop:
            def update(self, done: float, total: float, **fields: float | str) -> None:
                if done == stop:  # noqa: B023 (called at once)
                    raise Killed

        ctx.progress = Stop()
        with pytest.raises(Killed):
            run(name, ctx)
    ctx = new_context("interrupted")
    run(name, ctx)
    return ctx


@pytest.mark.parametrize("name", STEPS)
def test_resumes_to_the_bit(name: str, new_context: New) -> None:
    whole = new_context("whole")
    run(name, whole)
    pieces = interrupted(name, new_context, [2, 4, STEPS[name] - 1])
    for file in ("model/model.safetensors", "metrics.jsonl"):
        assert (pieces.dir / file).read_bytes() == (whole.dir / file).read_bytes(), file
    assert pieces.cost == whole.cost


def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": f"{HERE}:{HERE.parents[1] / 'src'}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, str(HERE / "train_runs.py"), name, str(folder)]
    return subprocess.Popen(command, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "grpo"])
def test_sigkill_at_any_instant(name: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    began = time.monotonic()
    assert start(name, whole).wait() == 0
    took = time.monotonic() - began
    stream = random.Random(name)
    for _ in range(6):
        process = start(name, killed)
        time.sleep(took * stream.uniform(0.6, 1.0))  # most of the time goes into imports
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(name, killed).wait() == 0
    for file in ("model/model.safetensors", "metrics.jsonl"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cutting_a_batch_changes_nothing(smoothing: float, new_context: New) -> None:
    models, losses = [], []
    for microbatch in (0, 1, 3):
        ctx = new_context(f"micro-{microbatch}")
        model = tiny_model()
        objective = NextToken(Batches(tiny_rows(), 8, 0), microbatch, smoothing)
        loop.train(ctx, model, objective, TrainSettings(lr=1e-3, precision="f32"), 4)
        models.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        losses.append([row["loss"] for row in ctx.metrics.rows])
    for other, curve in zip(models[1:], losses[1:], strict=True):
        assert curve == pytest.approx(losses[0], abs=1e-6)
        torch.testing.assert_close(other, models[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("setting", ["recompute", pytest.param("compile", marks=pytest.mark.slow)])
def test_settings_that_only_change_speed(setting: str, new_context: New) -> None:
    weights = []
    for on in (False, True):
        ctx = new_context(f"{setting}-{on}")
        model = tiny_model()
        settings = TrainSettings(lr=1e-3, precision="f32", **{setting: on})
        loop.train(ctx, model, NextToken(Batches(tiny_rows(), 4, 0)), settings, 2)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert "forward" not in vars(model.model.layers[0])
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-5)


class Poisoned(NextToken):
    """Gives losses that are not finite in chosen steps."""

    poisoned: frozenset[int] = frozenset()
    step = -1

    def draw(self, step: int):  # type: ignore[no-untyped-def]
        self.step = step
        return super().draw(step)

    def loss(self, model, micro):  # type: ignore[no-untyped-def]
        loss = super().loss(model, micro)
        if self.step in self.poisoned:
            loss.total = loss.total * float("nan")
        return loss


def test_a_step_that_is_not_finite_is_skipped(new_context: New) -> None:
    ctx = new_context()
    objective = Poisoned(Batches(tiny_rows(), 4, 0))
    objective.poisoned = frozenset([1, 2, 4])
    model = tiny_model()
    result = loop.train(ctx, model, objective, TrainSettings(bad_steps=3), 6)
    assert result["skipped_steps"] == 3
    assert [row["loss"] is None for row in ctx.metrics.rows] == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    json.loads((ctx.dir / "metrics.jsonl").read_text().splitlines()[1], parse_constant=pytest.fail)


def test_what_was_in_a_skipped_batch_is_named(new_context: New) -> None:
    """Every example of it, by what it is called, though packing has mixed and cut them."""
    examples: list[Example] = [([2 + n] * (2 + n), None) for n in range(40)]
    batches = Batches(pack(examples, 16, 0), 3, 0)
    objective = Poisoned(batches, names="sample-{}".format)
    objective.poisoned = frozenset([1, 4])
    ctx = new_context()
    loop.train(ctx, tiny_model(), objective, TrainSettings(), 6)
    again = Batches(batches.rows, 3, 0)
    for row in ctx.metrics.rows:
        batch = next(again)
        if row["loss"] is None:
            held = batch.ids_BL[batch.segments_BL > 0].unique().tolist()
            assert sorted(row["ids"]) == sorted(f"sample-{token - 2}" for token in held)
        assert ("ids" in row) == (row["loss"] is None)


def test_too_many_in_a_row_stop_the_run(new_context: New) -> None:
    objective = Poisoned(Batches(tiny_rows(), 4, 0))
    objective.poisoned = frozenset(range(2, 10))
    with pytest.raises(
        PhikitError, match=r"3 steps in a row.*step 5 \(4 rows from row 16 of epoch"
    ):
        loop.train(new_context(), tiny_model(), objective, TrainSettings(bad_steps=3), 10)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_one_line(
    background: bool, new_context: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors tells of it in its own way; with room made, training goes on."""
    settings = TrainSettings(
        precision="f32", checkpoint_every=2, checkpoint_in_background=background
    )
    whole = new_context("whole")
    loop.train(whole, tiny_model(), NextToken(Batches(tiny_rows(), 4, 0)), settings, 8)
    ctx = new_context("full")
    written: list[object] = []

    def full(*arguments: object, **named: object) -> None:
        written.append(arguments)
        if len(written) == 2:
            raise SafetensorError("Error while serializing: I/O error: No space (os error 28)")
        save_file(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("phikit.models.checkpoint.save_file", full)
    with pytest.raises(PhikitError, match=r"the disk is full: writing .*step-00000004"):
        loop.train(ctx, tiny_model(), NextToken(Batches(tiny_rows(), 4, 0)), settings, 8)
    assert [p.name for p in (ctx.dir / "checkpoints").iterdir()] == ["step-00000002"]
    ctx.close()
    ctx = new_context("full")
    loop.train(ctx, tiny_model(), NextToken(Batches(tiny_rows(), 4, 0)), settings, 8)
    assert ctx.metrics.rows == whole.metrics.rows


def test_checkpoints_are_kept_and_corrupt_ones_named(new_context: New) -> None:
    ctx = new_context()
    run("adamw", ctx)
    saved = sorted(p.name for p in (ctx.dir / "checkpoints").iterdir())
    assert saved == ["step-00000009", "step-00000012"]
    file = ctx.dir / "checkpoints" / saved[1] / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PhikitError, match=r"step-00000012/tensors.safetensors: corrupt"):
        run("adamw", new_context())


def test_checkpoints_are_held_to_the_content_of_their_data(tmp_path: Path) -> None:
    def holds(folder: Path, *names: str) -> None:
        Checkpoints(folder / "checkpoints", 2).hold_to([folder / name for name in names])

    begun, moved = tmp_path / "begun", tmp_path / "moved"
    begun.mkdir()
    for text in ("other", "data"):  # nothing is trained yet
        (begun / "a").write_text(text)
        holds(begun, "a")
    (begun / "checkpoints" / "step-00000002").mkdir()
    begun.rename(moved)
    holds(moved, "a")
    with pytest.raises(PhikitError, match=r"begun/a: not what .*step-00000002.*, now not there"):
        holds(moved)
    (moved / "a").write_text("date")
    with pytest.raises(PhikitError, match=r"moved/a: not what .* was 4 bytes with SHA-256 3a6eb0"):
        holds(moved, "a")
    shutil.rmtree(moved / "checkpoints")  # as its hint says
    holds(moved, "a")


def test_another_optimisers_checkpoint_is_refused(new_context: New) -> None:
    def train(kind: str) -> None:
        settings = TrainSettings(optimiser=OptimiserSettings(kind=kind))  # type: ignore[arg-type]
        objective = NextToken(Batches(tiny_rows(), 4, 0))
        loop.train(new_context(), tiny_model(), objective, settings, 3)

    train("adamw")
    with pytest.raises(PhikitError, match="optimiser's state does not fit"):
        train("muon")
