"""What a stage is: a function with a typed configuration, declared inputs and a folder of its own.

A package offers its stages as a list `STAGES` of `Stage` in its `stages.py`; a recipe strings them
together; `phikit.run` runs each once. The address of a stage is the hash of its configuration, its
inputs' addresses, its seed and the version of its code. A stage that says it is `resumable` finds
its folder as a killed run left it and must go on from there to the bit-identical result; any other
starts with an empty folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from phikit.files import Journal, fingerprint


class Config(BaseModel):
    """A stage's settings: checked once, when the recipe is read. Unknown keys are refused, and so
    are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Progress(Protocol):
    """Where a stage says how far it is. Calls are cheap: the display decides when to draw."""

    def update(self, done: float, total: float, **fields: float | str) -> None:
        """`done` of `total` units; `fields` (loss=..., tokens_per_s=...) are shown beside it."""


class Silent:
    """A `Progress` that shows nothing, for tests and for use from Python."""

    def update(self, done: float, total: float, **fields: float | str) -> None:
        return


@dataclass
class Cost:
    """What a stage has used so far; it adds to these as it goes.

    `flops` is counted from shapes (2 per multiply-add), not measured. `tokens_*` are model tokens.
    """

    tokens_trained: int = 0
    tokens_generated: int = 0
    flops: float = 0.0


@dataclass
class Context:
    """All that a stage may touch besides its configuration and inputs.

    Attributes:
        dir: the stage's own folder; everything it makes goes here.
        seed: the seed of every random stream in the stage.
        threads: how many CPU threads to use; already set for torch.
        metrics: JSON lines, one row per step; on resume the stage cuts it back with `rewrite`.
    """

    dir: Path
    seed: int = 0
    threads: int = 1
    progress: Progress = field(default_factory=Silent)
    cost: Cost = field(default_factory=Cost)
    _metrics: Journal | None = None

    @property
    def metrics(self) -> Journal:
        """The stage's metrics.jsonl, opened when it is first asked for."""
        if self._metrics is None:
            self._metrics = Journal(self.dir / "metrics.jsonl")
        return self._metrics

    def close(self) -> None:
        """Closes the metrics, if the stage wrote any."""
        if self._metrics is not None:
            self._metrics.close()


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Estimate:
    """What a stage will take, for `--dry-run`: a size for people, and what its time depends on.

    Attributes:
        seconds: a rough time, apart from what a model computes in it.
        tokens: how many tokens its artefacts hold for later stages to train on.
        passes: how often it trains on the tokens of its inputs, or
        trained: on how many tokens it trains.
        generated: how many tokens it samples.
        parameters: of the model that it makes; 0 for those of its input's.
        shape: of the model that it makes (a `DecoderConfig`); None for its input's.
        context: tokens per sequence that it trains on; 0 for the model's.
    """

    size: str
    seconds: float = 0.0
    tokens: float = 0.0
    passes: float = 0.0
    trained: float = 0.0
    generated: float = 0.0
    parameters: float = 0.0
    shape: Any = None
    context: int = 0


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A kind of stage that recipes can name.

    Attributes:
        verb: its name in a recipe, "package.action" ("train.sft", "data.documents").
        config: the type of its settings.
        run: (context, settings, input folders by name) → summary, a small JSON-able dict.
        inputs: the names of the inputs it must be given; a name ending in "?" may be left out,
            one ending in "*" takes any number of stages (passed as "name.0", "name.1", ...).
        resumable: it can go on from what a killed run left in its folder.
        estimate: settings → `Estimate`, for `--dry-run`.
        reads: settings → the files and folders outside the run that it reads; when one of them
            changes, a recipe's stage runs again, and a stage alone does not go on.
    """

    verb: str
    config: type[C]
    run: Callable[[Context, C, Mapping[str, Path]], dict[str, Any]]
    inputs: tuple[str, ...] = ()
    resumable: bool = False
    estimate: Callable[[C], Estimate] | None = None
    help: str = ""
    reads: Callable[[C], Sequence[str]] = lambda settings: ()

    def fingerprints(self, settings: C) -> dict[str, str]:
        """Each path that it `reads` → what changes when what is there does."""
        return {path: fingerprint(Path(path)) for path in self.reads(settings)}


def given(inputs: Mapping[str, Path], role: str) -> list[Path]:
    """The folders of an input that takes any number of stages: "role.0", "role.1", ..."""
    keys = [key for key in inputs if key.startswith(f"{role}.")]
    return [inputs[key] for key in sorted(keys, key=lambda key: int(key.rpartition(".")[2]))]
