"""Checkpoints: everything a run depends on, written at once or not at all.

A checkpoint is a folder named by its step: `tensors.safetensors` (weights, optimiser, torch's
random stream) and `state.json` (the rest). Nothing is pickled.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from phikit.errors import PhikitError
from phikit.files import atomic_directory, explain_os_errors, read_json, write_json


@dataclass
class State:
    """Where a run is.

    Attributes:
        step: steps done.
        objective: the objective's own position in its data, JSON-able.
        counters: tokens trained, FLOPs, steps skipped, ...
        tensors: weights ("model.") and optimiser ("optimiser.") by name.
    """

    step: int
    objective: dict[str, Any]
    counters: dict[str, float]
    tensors: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one run: saved atomically, the last `keep` of them kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def saved(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*") if p.is_dir())

    def save(self, state: State) -> None:
        with atomic_directory(self.folder / f"step-{state.step:08d}") as new:
            tensors = state.tensors | {"random.torch": torch.get_rng_state()}
            save_file({n: t.detach().contiguous() for n, t in tensors.items()},
                      new / "tensors.safetensors")  # fmt: skip
            write_json(
                new / "state.json",
                {"step": state.step, "objective": state.objective, "counters": state.counters},
            )
        for old in self.saved()[: -self.keep]:
            _remove(old)

    def latest(self) -> State | None:
        """The newest checkpoint, with torch's random stream set to it; None when there is none.

        Raises:
            PhikitError: it is corrupt; says so and how to go on.
        """
        saved = self.saved()
        if not saved:
            return None
        file = saved[-1] / "tensors.safetensors"
        try:
            with explain_os_errors(file, "reading"):
                tensors = load_file(file)
        except SafetensorError as e:
            raise PhikitError(
                f"{file}: corrupt checkpoint ({e})",
                f"remove {saved[-1]} to go on from the checkpoint before it",
            ) from e
        raw = read_json(saved[-1] / "state.json")
        torch.set_rng_state(tensors.pop("random.torch"))
        return State(raw["step"], raw["objective"], raw["counters"], tensors)

    def remove(self) -> None:
        """Removes them all, when the run is done and its model is written."""
        if self.folder.exists():
            _remove(self.folder)


def _remove(folder: Path) -> None:
    """Removes a folder so that no half of it is ever found under its name."""
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)
