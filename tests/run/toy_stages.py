"""Small real stages for the runner's tests: they count, add, and can be killed while at it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from phikit.errors import PhikitError
from phikit.files import read_json, write_json
from phikit.recipes.registry import Registry
from phikit.stage import Config, Context, Stage

REGISTRY = Registry({"toy": __name__})


class Count(Config):
    steps: int = Field(5, ge=1, description="How many steps to make.")
    start: int = Field(0, description="Where to begin.")
    file: str = Field("", description="Read from outside the run.")
    pause: float = Field(0.0, description="Seconds of sleep after each step.")


class Inner(Config):
    factor: float = Field(1.0, description="What to multiply by.")


class Add(Config):
    plus: int = 0
    inner: Inner = Inner()


class Fail(Config):
    how: str = "error"


def count(context: Context, config: Count, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """A running hash, one durable metrics row per step: resumable to the same rows and result."""
    rows = context.metrics.rows
    state = rows[-1]["state"] if rows else config.start + context.seed
    for step in range(len(rows), config.steps):
        state = (state * 1103515245 + 12345) % 2**31
        context.metrics.append({"step": step, "state": state})
        context.progress.update(step + 1, config.steps, loss=1 / (step + 1))
        time.sleep(config.pause)
    write_json(context.dir / "result.json", {"value": state})
    return {"value": state}


def add(context: Context, config: Add, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The sum of its inputs; leaves droppings that a second attempt must not find."""
    assert not (context.dir / "droppings").exists()
    (context.dir / "droppings").write_text("x")
    total = sum(read_json(folder / "result.json")["value"] for folder in inputs.values())
    total = int((total + config.plus) * config.inner.factor)
    write_json(context.dir / "result.json", {"value": total})
    return {"value": total}


def fail(context: Context, config: Fail, inputs: Mapping[str, Path]) -> dict[str, Any]:
    (context.dir / "half.txt").write_text("half")
    if config.how == "error":
        raise PhikitError("the toy is broken", "mend it")
    if config.how == "disk":
        raise OSError(28, "No space left on device")
    if config.how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


STAGES = [
    Stage("toy.count", Count, count, resumable=True, help="Counts.",
          reads=lambda s: [s.file] if s.file else []),
    Stage("toy.add", Add, add, inputs=("first", "more*", "maybe?"), help="Adds."),
    Stage("toy.fail", Fail, fail, inputs=("first?",)),
]  # fmt: skip
