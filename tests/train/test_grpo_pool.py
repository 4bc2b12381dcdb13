"""GRPO whose rollouts come from engines on a Ray cluster: the same training, whatever happens."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from test_train_stages import SHAPE, inputs, question
from test_train_stages import run as stage
from train_fixtures import tiny_model
from train_runs import StopAfter, grpo, run

from phikit.records import Sample, Verdict, write_records
from phikit.stage import Context
from phikit.train.adapters import adapt
from phikit.train.objectives.drawing import PooledDrawer
from phikit.train.objectives.grpo_settings import GeneratorSettings
from phikit.train.settings import LoraSettings
from phikit.train.stage_grpo import GrpoSettings
from phikit.verify.base import VERIFIERS, Problem

__all__ = ["inputs"]  # the fixture of that name
POOL = GeneratorSettings(kind="ray", workers=2)
New = Callable[..., Context]

ray = pytest.importorskip("ray", reason="pip install -e '.[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # what else needs memory on this machine is no reason to kill engines here
    calm = {"memory_monitor_refresh_ms": 0, "worker_niceness": 0}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=calm)
    yield
    ray.shutdown()


def losses(ctx: Context) -> list[float]:
    return [row["loss"] for row in ctx.metrics.rows]


def test_settings_of_a_pool_alone_are_refused() -> None:
    assert GrpoSettings().generator.kind == "local"
    with pytest.raises(ValidationError, match=r"add generator\.kind=ray"):
        GeneratorSettings(workers=2)
    assert GeneratorSettings(**POOL.model_dump()) == POOL


@pytest.mark.slow
@pytest.mark.parametrize(("adapted", "precision"), [(False, "f32"), (True, "f32"), (True, "bf16")])
def test_rollouts_are_the_local_ones_of_the_weights_at_each_step(
    adapted: bool, precision: str, cluster: None
) -> None:
    torch.set_num_threads(1)
    model = tiny_model()
    if adapted:
        adapt(model, LoraSettings(rank=4, targets=("qkv_proj", "lm_head")), 3)
    pooled = grpo(model, generator=POOL, invariant=True, precision=precision)
    try:
        found = []
        for step in range(2):
            with torch.no_grad():  # as an update of the optimiser does
                for p in model.parameters():
                    if p.requires_grad:
                        p += torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.3
            found.append(rollouts(pooled, step))
            assert found[-1] == rollouts(grpo(model, invariant=True, precision=precision), step)
        stale = tiny_model()
        assert found[1] != rollouts(grpo(stale, invariant=True, precision=precision), 1)
        assert isinstance(pooled.drawer, PooledDrawer) and pooled.drawer.pool is not None
        assert pooled.drawer.pool.version == 2
    finally:
        pooled.drawer.close()


def rollouts(objective: Any, step: int) -> list[Any]:
    """All that an iteration draws, before any of it is left out."""
    drawn: list[Any] = []
    judged = objective._judged
    objective._judged = lambda samples, made: (drawn.extend(made), judged(samples, made))[1]
    objective._iteration(step)
    objective._judged = judged
    return drawn


@pytest.mark.slow
def test_training_is_the_same_through_a_death_and_goes_on_to_the_bit(
    new_context: New, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, whole = new_context("local"), new_context("pool")
    run("grpo", local)
    run("grpo-ray", whole)
    assert losses(whole) == pytest.approx(losses(local), abs=1e-5)
    assert all(row["engine_gap"] < 1e-4 for row in whole.metrics.rows)

    # a worker is killed while it draws, in the second iteration; the run itself after that
    from phikit.engine.policy_pool import PolicyPool

    hand_out, killed = PolicyPool._hand_out, []

    def killing(self: PolicyPool, todo: Any) -> None:
        hand_out(self, todo)
        busy = [i for i, engine in enumerate(self.engines) if engine.part]
        if not killed and self.version == 2 and busy:
            killed.append(self)
            os.kill(self.pids()[busy[0]], signal.SIGKILL)

    monkeypatch.setattr(PolicyPool, "_hand_out", killing)
    pieces = new_context("pieces")
    pieces.progress = StopAfter(5)
    with pytest.raises(KeyboardInterrupt):
        run("grpo-ray", pieces)
    assert [pool.replaced for pool in killed] == [1]
    pieces = new_context("pieces")
    run("grpo-ray", pieces)
    for file in ("model/model.safetensors", "metrics.jsonl"):
        assert (pieces.dir / file).read_bytes() == (whole.dir / file).read_bytes(), file


class EvenLength:
    """Right when the answer has an even number of characters: an untrained model is, at times."""

    name = "even-length"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [
            Verdict(passed=len(t) % 2 == 0, score=0.0, reason="", verifier=self.name)
            for _, t in items
        ]


@pytest.mark.slow
def test_the_stage_with_a_pool_trains_what_it_trains_without(
    inputs: dict[str, Path], tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    root = inputs["root"]
    shape = {"model": SHAPE, "context": 64, "batch_rows": 4, "steps": 2, "lr": 1e-2}
    stage("train.pretrain", tmp_path / "pre", shape, shards=root, tokenizer=root)
    monkeypatch.setitem(VERIFIERS, "even-length", EvenLength)
    asked = [replace(question(i), verifier="even-length", id="") for i in range(12)]
    write_records(tmp_path / "samples.parquet", asked, Sample)
    settings = {
        "lr": 1e-3, "warmup": 0, "steps": 2, "precision": "f32",
        "rollouts": {"prompts": 4, "group": 4, "max_tokens": 12, "think": False, "reward": "sign",
                     "max_batch": 5},
    }  # fmt: skip
    found = {}
    for name, generator in (("local", {}), ("ray", {"kind": "ray", "workers": 2, "threads": 1})):
        told = settings | {"generator": generator}
        done = stage(
            "train.grpo", tmp_path / name, told, model=tmp_path / "pre", problems=tmp_path
        )  # fmt: skip
        assert done["groups_kept"] > 0
        found[name] = Context(tmp_path / name)
    assert len(losses(found["ray"])) == 2 and all(losses(found["ray"]))
    assert losses(found["ray"]) == pytest.approx(losses(found["local"]), abs=1e-5)
    model, same = (load_file(tmp_path / n / "model" / "model.safetensors") for n in found)
    for name, weight in model.items():
        torch.testing.assert_close(same[name], weight, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_of_several_processes_the_first_has_the_pool(tmp_path: Path) -> None:
    from test_processes import RUNS, finished, torchrun

    shared, local = tmp_path / "shared", tmp_path / "local"
    shared.mkdir(), local.mkdir()
    finished(torchrun(2, RUNS, "grpo-ray", shared, 0))
    run("grpo", Context(local))
    told = [json.loads(line)["loss"] for line in (shared / "metrics.jsonl").open()]
    assert told == pytest.approx(losses(Context(local)), abs=1e-5)
