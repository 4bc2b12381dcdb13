"""Runs a recipe's stages, each once, resumable at any instant.

A plan gives every stage its address. A stage whose address is done in the run directory is
skipped; one that was killed goes on from its last durable point; anything else runs, and its
stage.json is the last file it writes. All stages run in this process, with the recipe's threads.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from phikit import ledger
from phikit.errors import PhikitError, did_you_mean
from phikit.files import (
    Journal,
    canonical_json,
    explain_os_errors,
    read_json,
    write_atomic,
    write_json,
)
from phikit.imports import Sources
from phikit.ledger import Identity, Shelf
from phikit.memory import PeakMemory, give_back_freed_memory, keep_freed_memory
from phikit.progress import Display, duration, figures
from phikit.recipes.schema import Recipe, StageSpec, as_yaml
from phikit.stage import Context, Cost, Estimate


@dataclass(frozen=True)
class Step:
    """One stage of a plan. `inputs`: the argument its function gets ("samples.0") → folder name."""

    number: int
    spec: StageSpec
    identity: Identity
    address: str
    inputs: dict[str, str]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def folder(self) -> str:
        return f"{self.number:02d}-{self.name}"


def stage_seed(seed: int, name: str) -> int:
    """The seed of a stage: 31 bits of SHA-256 over the recipe's seed and the stage's name."""
    return int.from_bytes(sha256(f"{seed}/{name}".encode()).digest()[:4]) >> 1


def plan(recipe: Recipe, sources: Sources) -> list[Step]:
    """Every stage with its address, in order. Reads the sources; writes nothing."""
    steps: dict[str, Step] = {}
    for number, spec in enumerate(recipe.stages, 1):
        roots = {spec.stage.run.__module__, spec.stage.config.__module__}
        identity = Identity(
            verb=spec.verb,
            config=spec.config.model_dump(mode="json"),
            inputs={
                role: tuple(steps[name].address for name in names)
                for role, names in spec.inputs.items()
            },
            seed=stage_seed(recipe.seed, spec.name),
            threads=recipe.threads,
            code=sources.version(roots),
            files=spec.stage.fingerprints(spec.config),
        )
        inputs = {}
        for role, names in spec.inputs.items():
            many = role + "*" in spec.stage.inputs
            for i, name in enumerate(names):
                inputs[f"{role}.{i}" if many else role] = steps[name].folder
        steps[spec.name] = Step(number, spec, identity, identity.address, inputs)
    return list(steps.values())


# --- What would run, and why ---------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """What `run` would do with a step. `why` is empty for a stage that is done."""

    step: Step
    why: str
    estimate: Estimate


def forecast(steps: Sequence[Step], run: Path) -> list[Forecast]:
    """What `run` would do, and roughly how long it would take. Writes nothing."""
    found = Shelf(run).by_address()
    forecasts: list[Forecast] = []
    known: dict[str, Estimate] = {}
    for step in steps:
        inputs = step.spec.inputs
        given = [known[name] for names in inputs.values() for name in names]
        models = [known[name] for role in _MODELS for name in inputs.get(role, ())]
        known[step.name] = _timed(_estimate(step, run), given, models or given)
        why = _why(step, found.get(step.address), run)
        forecasts.append(Forecast(step, why, known[step.name]))
    return forecasts


# What two cores reach on a model of a million parameters, whose operations are short: operations
# per second, in training and in batched generation (docs/lab-notebook.md).
_TRAINING_RATE, _GENERATION_RATE = 1.3e11, 2.5e10
# The same of a hundred million parameters (benchmarks/train.py), from this many on.
_LARGE, _LARGE_TRAINING_RATE, _LARGE_GENERATION_RATE = 32_000_000, 3e11, 9e10


_MODELS = ("model", "models")  # the inputs whose model a stage runs, not what others drew


def _timed(estimate: Estimate, given: Sequence[Estimate], models: Sequence[Estimate]) -> Estimate:
    """With the seconds that its model will compute, 6 operations per parameter and trained token
    and 2 per generated one. The model is the largest of `models`, if it makes none itself."""
    parameters = estimate.parameters or max((e.parameters for e in models), default=0.0)
    trained = estimate.trained or estimate.passes * sum(e.tokens for e in given)
    training, drawing = _TRAINING_RATE, _GENERATION_RATE
    if parameters >= _LARGE:
        training, drawing = _LARGE_TRAINING_RATE, _LARGE_GENERATION_RATE
    computing = parameters * (6 * trained / training + 2 * estimate.generated / drawing)
    shape = estimate.shape or next((e.shape for e in models if e.shape is not None), None)
    return replace(
        estimate, seconds=estimate.seconds + computing, parameters=parameters, trained=trained,
        shape=shape,
    )  # fmt: skip


def preview(recipe: Recipe, directory: Path) -> list[Forecast]:
    """The forecast of a whole recipe, for --dry-run."""
    return forecast(plan(recipe, Sources(cache=_read_cache(directory))), directory)


def _why(step: Step, found: Path | None, run: Path) -> str:
    """Why a step would run; empty when it is done in the folder `found`."""
    if found is not None:
        record = ledger.done(found)
        if record is not None:
            return ledger.damage(found, record, hashes=False)
        return "was stopped; goes on" if step.spec.stage.resumable else "was stopped; starts again"
    for folder in run.glob(f"[0-9]*-{step.name}"):
        old = ledger.done(folder) or ledger.started(folder)
        if old is not None and ledger.STAGE_FOLDER.fullmatch(folder.name):
            return step.identity.differs(old["identity"])
    return "new"


def _estimate(step: Step, run: Path) -> Estimate:
    """The stage's own estimate; else what the same stage took here before."""
    if step.spec.stage.estimate is not None:
        return step.spec.stage.estimate(step.spec.config)
    for folder, record in ledger.stages(run):
        if folder.name.partition("-")[2] == step.name:
            return Estimate("", float(record["cost"]["seconds"]))
    return Estimate("")


# --- Running -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a run came to: `ran` are the names of the stages that did not have to be skipped."""

    directory: Path
    steps: tuple[Step, ...]
    ran: tuple[str, ...]


def run(
    recipe: Recipe,
    directory: Path,
    display: Display,
    until: str = "",
    verify: bool = False,
    fresh: bool = False,
    sources: Sources | None = None,
) -> Outcome:
    """Runs what is not done yet.

    Args:
        directory: the run directory, made when missing.
        until: the name of the last stage to run; all when empty.
        verify: hold every artefact against its recorded hash, not only its size.
        fresh: delete what is there first.

    Raises:
        PhikitError: another run holds the directory, it is not a run's, or a stage failed in a way
            that the user can put right. What was done stays done.
    """
    names = [spec.name for spec in recipe.stages]
    if until and until not in names:
        raise PhikitError(f"--until {until}: no such stage", did_you_mean(until, names))
    ledger.open_folder(directory)
    with ledger.locked(directory):
        if fresh:
            ledger.clear(directory)
        sources = sources or Sources(cache=_read_cache(directory))
        steps = plan(recipe, sources)
        forecasts = forecast(steps, directory)
        _write_once(directory / "recipe.yaml", as_yaml(recipe))
        _write_once(directory / ".code.json", canonical_json(sources.cached))
        shelf = Shelf(directory)
        shelf.arrange(
            {step.folder: step.address for step in steps},
            {step.address for step in steps if step.spec.stage.resumable},
        )
        runner = _Runner(recipe, directory, display, sources, len(steps))
        last = names.index(until) if until else len(steps) - 1
        for cast in forecasts[: last + 1]:
            if _is_done(cast.step, shelf, verify, display):
                runner.skip(cast.step)
            else:
                runner.run(cast.step, cast.why)
        return Outcome(directory, tuple(steps[: last + 1]), tuple(runner.ran))


def _is_done(step: Step, shelf: Shelf, verify: bool, display: Display) -> bool:
    """Whether a step is done and its files are whole. Damaged ones are deleted, and said so."""
    folder = shelf.run / step.folder
    record = ledger.done(folder)
    if record is None:
        return False
    if wrong := ledger.damage(folder, record, hashes=verify):
        display.say(f"! {wrong}: the stage {step.name} is made again")
        shelf.discard(folder)
        return False
    return True


class _Runner:
    """Runs single steps and keeps the ledger."""

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        display: Display,
        sources: Sources,
        total: int,
    ) -> None:
        self._recipe, self._directory, self._display = recipe, directory, display
        self._sources, self._total = sources, total
        self._versions = versions()
        self._skipped: list[Step] = []
        self.ran: list[str] = []

    def skip(self, step: Step) -> None:
        """Passes over a step that is done; told to the ledger only when something else runs."""
        self._skipped.append(step)

    def run(self, step: Step, why: str) -> None:
        """Runs one step to its end and writes its stage.json.

        Raises:
            PhikitError: it failed in a way that the user can put right.
        """
        folder = self._directory / step.folder
        earlier = ledger.seconds_so_far(folder)
        self._note_other_versions(folder)
        ledger.write_started(folder, step.identity, earlier, self._versions)
        for skipped in self._skipped:
            self._event("skipped", skipped)
        self._skipped.clear()
        self._event("started", step, why=why, inputs=_inputs(step), versions=self._versions,
                    threads=self._recipe.threads)  # fmt: skip
        self._set_threads(step)
        context = Context(folder, step.identity.seed, self._recipe.threads, cost=Cost())
        begun, peak = time.perf_counter(), PeakMemory()
        try:
            label = f"{step.number:>2}/{self._total} {step.name}"
            with peak, self._display.stage(label) as progress:
                context.progress = progress
                arguments = {role: self._directory / name for role, name in step.inputs.items()}
                with explain_os_errors(folder, f"stage {step.name!r}, writing"):
                    summary = step.spec.stage.run(context, step.spec.config, arguments)
                context.close()
        except BaseException as e:
            # on a full disk this line cannot be written either; the first error is the one to show
            with suppress(PhikitError):
                kind = "failed" if isinstance(e, Exception) else "stopped"
                self._event(kind, step, error="".join(traceback.format_exception_only(e)).strip())
            raise
        cost = {
            "seconds": round(earlier + time.perf_counter() - begun, 3),
            **asdict(context.cost),
            "peak_bytes": peak.bytes,
        }
        self._finish(step, folder, summary, cost)
        give_back_freed_memory()

    def _finish(
        self, step: Step, folder: Path, summary: dict[str, Any], cost: dict[str, Any]
    ) -> None:
        write_json(
            folder / "stage.json",
            {
                "name": step.name,
                "verb": step.spec.verb,
                "address": step.address,
                "inputs": _inputs(step),
                "config": dict(step.identity.config),
                "summary": summary,
                "cost": cost,
                "finished": time.time(),
                "versions": self._versions,
                "identity": asdict(step.identity),
                "artefacts": ledger.artefacts(folder),
            },
        )
        self._event("finished", step, cost=cost)
        self.ran.append(step.name)
        taken = duration(cost["seconds"])
        width = max(len(spec.name) for spec in self._recipe.stages)
        head = f"✓ {step.number:>2}/{self._total} {step.name:<{width}} {taken:>7}  "
        self._display.say(head + figures(summary, self._display.width - len(head)))

    def _set_threads(self, step: Step) -> None:
        """Gives torch the recipe's threads and memory to reuse, if this step can reach torch."""
        if self._sources.uses([step.spec.stage.run.__module__], "torch"):
            import torch

            torch.set_num_threads(self._recipe.threads)
            keep_freed_memory()

    def _note_other_versions(self, folder: Path) -> None:
        """Says so when a stage goes on under other versions than it began with."""
        before = (ledger.started(folder) or {}).get("versions", self._versions)
        for name, version in self._versions.items():
            if before.get(name) != version:
                self._display.say(
                    f"! {folder.name} began with {name} {before.get(name)} and goes on with "
                    f"{version}: its result may differ in the last bits"
                )

    def _event(self, event: str, step: Step, **fields: Any) -> None:
        row = {"event": event, "stage": step.name, "address": step.address, "at": time.time()}
        with Journal(self._directory / "ledger.jsonl") as journal:
            journal.append({**row, **fields})


def _inputs(step: Step) -> dict[str, list[str]]:
    return {role: list(names) for role, names in step.spec.inputs.items()}


def versions() -> dict[str, str]:
    """Versions of what a result may depend on besides phikit's own code."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("phikit", "torch", "numpy", "tokenizers"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _write_once(path: Path, text: str) -> None:
    """Writes a file unless it already says so: a second run touches nothing."""
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text)


def _read_cache(directory: Path) -> dict[str, Any]:
    path = directory / ".code.json"
    return dict(read_json(path)) if path.exists() else {}
