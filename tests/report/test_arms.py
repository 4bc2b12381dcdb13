"""Arms of an ablation over several seeds, without a fine-tuned model."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_run import Builder
from typer.testing import CliRunner

from phikit import report
from phikit.cli import app
from phikit.errors import PhikitError


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs in which `both` answers better than `organic`, and needs more nats."""
    made = []
    for seed in range(2):
        builder = Builder(tmp_path_factory.mktemp("arms") / f"s{seed}", seed)
        builder.stage("items", "synth.items")
        for name, skill, nats in (("organic", -3.0, 3.0), ("both", 0.5, 3.2 + 0.02 * seed)):
            builder.train(name, "train.pretrain", 5.0, {"loss": (6.0, 3.0)})
            builder.evaluate(name, skill)
            builder.stage(
                f"text-{name}",
                "train.perplexity",
                {"model": [name]},
                {"nll": nats, "perplexity": 20.0, "tokens": 9},
            )
        made.append(builder.run)
    return made


def test_arms_are_held_against_one_of_them(seeds: list[Path]) -> None:
    table = report.seeds(seeds, "organic")
    lines = [line.split(" | ") for line in table.strip().splitlines()]
    assert [line[0] for line in lines[2:]] == ["| organic", "| both"]
    both = lines[3]
    assert both[2].startswith("+") and both[4] == "< 0.001" and "to" in both[5]
    assert both[6] == "3.210" and both[7] == "+0.210" and "+0.083 to +0.337" in both[8]
    assert report.seeds(seeds) == table  # the first arm, where none is named
    other = report.seeds(seeds, "both").splitlines()[2]
    assert other.split(" | ")[2].startswith("−")


def test_the_command_and_a_wrong_arm(seeds: list[Path]) -> None:
    shown = CliRunner().invoke(app, ["report", *map(str, seeds), "--against", "both"])
    assert shown.exit_code == 0 and "change against both" in shown.output
    with pytest.raises(PhikitError, match=r"no arm 'bothh'(.|\n)*did you mean 'both'"):
        report.seeds(seeds, "bothh")
