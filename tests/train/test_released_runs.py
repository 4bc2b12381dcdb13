"""Every recipe says beforehand what it takes; the released ones agree with what was published."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from phikit import run, summary
from phikit.models.family import find
from phikit.recipes.load import built_in, load
from phikit.recipes.source import _Loader
from phikit.train.settings import TrainSettings

DAY = 86_400


def forecasts(name: str, folder: Path) -> tuple[str, dict[str, summary.Planned]]:
    recipe = load(name)
    seen = run.preview(recipe, folder / "run")
    assert not (folder / "run").exists()
    return summary.table(seen, recipe, folder), summary.on_cluster(seen, recipe)


_TIME = r"(\d s|\d:\d\d|days)  runs: new$"


def rows(table: str) -> list[str]:
    """Those of the stages."""
    return [line for line in table.splitlines() if line.endswith("runs: new")]


@pytest.mark.parametrize("name", sorted(built_in()))
def test_every_recipe_is_forecast(name: str, tmp_path: Path) -> None:
    table, planned = forecasts(name, tmp_path)
    recipe = load(name)
    for spec in recipe.stages:
        assert f" {spec.name} " in table
    if recipe.cluster is not None:
        trained = {s.name for s in recipe.stages if s.verb.startswith("train.")}
        trained -= {s.name for s in recipe.stages if s.verb == "train.start"}
        assert trained <= planned.keys()
        assert all(1e9 < p.memory < 80e9 and p.seconds > 0 for p in planned.values())
        assert "GB per GPU" in table and "on two cores" not in table
        others = {s.name for s in recipe.stages} - planned.keys()
        assert others == {row.split()[1] for row in rows(table) if not re.search(_TIME, row)}
    else:
        assert all(re.search(_TIME, row) for row in rows(table)) and "on two cores" in table


def test_a_stage_takes_the_memory_of_its_own_model_and_not_of_who_drew_its_data(
    tmp_path: Path,
) -> None:
    _, planned = forecasts("phi-4-mini-reasoning", tmp_path)
    teacher, mini = (find(n) for n in ("phi-4-reasoning-plus", "phi-4-mini"))
    assert teacher is not None and mini is not None
    assert planned["rollouts"].memory == 2 * teacher.config.parameters
    for stage in ("own-rollouts", "eval"):
        assert planned[stage].memory == 2 * mini.config.parameters


@pytest.mark.parametrize(
    ("name", "stages", "published_days"),
    # model cards of phi-4, phi-4-mini and phi-4-reasoning
    [
        ("phi-4", ["pretrain"], 21),
        ("phi-4-mini", ["pretrain"], 21),
        ("phi-4-reasoning", ["sft"], 2.5),
    ],
)
def test_time_is_about_what_was_published(
    name: str, stages: list[str], published_days: float, tmp_path: Path
) -> None:
    _, planned = forecasts(name, tmp_path)
    days = sum(planned[stage].seconds for stage in stages) / DAY
    assert days == pytest.approx(published_days, rel=0.2)


DOCUMENT = Path(__file__).parents[2] / "docs" / "recipes.md"


@pytest.mark.parametrize("name", [n for n in built_in() if n.startswith("phi-4")])
def test_the_table_of_settings_says_what_the_recipe_has(name: str) -> None:
    section = DOCUMENT.read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    rows = [re.split(r" *\| *", line)[1:-1] for line in section.splitlines() if line[:1] == "|"]
    configs = {s.name: s.config.model_dump() for s in load(name).stages}
    trained = [s.name for s in load(name).stages if isinstance(s.config, TrainSettings)]
    told = rows[2:]
    for stage, setting, value, source in told:
        held: Any = configs[stage]
        for key in setting.split("."):
            held = held[key]
        assert yaml.load(value, _Loader) == held, (stage, setting)
        assert source.startswith(("published", "default")), (stage, setting)
    assert {(stage, "lr") for stage in trained} <= {(stage, s) for stage, s, _, _ in told}


def test_published_settings() -> None:
    def config(recipe: str, stage: str):  # type: ignore[no-untyped-def]
        return next(s.config for s in load(recipe).stages if s.name == stage)

    pretrain = config("phi-4", "pretrain")
    assert (pretrain.lr, pretrain.batch_rows, pretrain.context) == (3e-4, 5760, 4096)
    assert pretrain.schedule == "linear" and pretrain.optimiser.weight_decay == 0.1
    assert pretrain.model.planned(1, 4096).parameters == 14_659_507_200
    midtrain = config("phi-4", "midtrain")
    assert (midtrain.lr, midtrain.rope_theta, midtrain.context_factor) == (3e-5, 250_000, 4)
    mini = config("phi-4-mini", "pretrain")
    assert (mini.lr, mini.warmup) == (5e-4, 3000)
    assert mini.model.planned(1, 4096).parameters == 3_836_021_760
    # 3,000 steps of warm-up are 25,165,824,000 tokens
    assert mini.warmup * mini.batch_rows * mini.context == 25_165_824_000
    for name in ("phi-4", "phi-4-mini"):
        member, shape = find(name), config(name, "pretrain").model.planned(1, 4096)
        assert member is not None
        for field in ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads",
                      "kv_heads", "head_dim", "rope_fraction", "tied", "norm_eps"):  # fmt: skip
            assert getattr(shape, field) == getattr(member.config, field), field
    first = config("phi-4", "dpo-pivots")
    pairs = config("phi-4", "pivots").target_pairs
    whole = pairs / (1 - first.mix["refusal"])
    assert pairs == 132_859 + 76_552 + 16_080 + 21_806
    assert whole - pairs == pytest.approx(3000, abs=5)
    assert first.steps == math.ceil(250_297 / first.batch_pairs)
    second = config("phi-4", "dpo-judge")
    assert second.steps == math.ceil(841_842 / second.batch_pairs)
    sft = config("phi-4-reasoning", "sft")
    assert (sft.lr, sft.warmup, sft.steps, sft.batch_rows) == (1e-5, 450, 16_000, 32)
    assert (sft.context, sft.rope_theta, sft.optimiser.weight_decay) == (32_768, 500_000, 1e-4)
    grpo = config("phi-4-reasoning-plus", "grpo")
    assert (grpo.lr, grpo.steps, grpo.warmup) == (5e-8, 90, 10)
    assert (grpo.rollouts.prompts, grpo.rollouts.group) == (64, 8)
    assert (grpo.rollouts.max_tokens, grpo.loss.kl, grpo.loss.entropy) == (31_744, 1e-3, 1e-3)
    assert (grpo.schedule, grpo.loss.kl_to, grpo.rollouts.reward) == ("cosine", "old", "reasoning")
    assert config("phi-4-reasoning-plus", "problems").count == 72_401
    for stage, context, packing in (("distill", 16_384, True), ("sft", 20_480, False)):
        step = config("phi-4-mini-reasoning", stage)
        assert (step.lr, step.batch_rows, step.epochs, step.warmup) == (1e-5, 128, 5, 0.1)
        assert (step.context, step.packing) == (context, packing)
    dpo = config("phi-4-mini-reasoning", "dpo")
    assert (dpo.lr, dpo.max_tokens, dpo.epochs, dpo.steps) == (5e-7, 16_384, 1, None)
    last = config("phi-4-mini-reasoning", "grpo")
    assert (last.rollouts.max_tokens, last.rollouts.temperature) == (25_000, 1.0)
    assert (last.rollouts.max_group_accuracy, last.rollouts.anneal_share) == (0.5, 0.5)
    assert last.rollouts.balance and last.rollouts.hard_share > 0
    assert (last.lr, last.rollouts.reward, last.rollouts.temperature_end) == (5e-7, "sign", 0.6)
