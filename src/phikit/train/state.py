"""Checkpoints: everything a run depends on, written at once or not at all.

A checkpoint is a folder named by its step: `tensors.safetensors` (weights, optimiser, torch's
random stream) and `state.json` (the rest). Several processes write a file of slices each instead
(`phikit.train.sliced`); either kind is read by any number of processes. Nothing is pickled.
`data.json` beside them says what files the run trains on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from phikit.errors import PhikitError
from phikit.files import (
    atomic_directory,
    explain_os_errors,
    read_json,
    remove_directory,
    sha256_file,
    write_json,
)
from phikit.models.checkpoint import write_tensors
from phikit.train import parallel, sliced
from phikit.train.tensors import Parts, Relaid

_FILE = "tensors.safetensors"


@dataclass
class State:
    """Where a run is.

    Attributes:
        step: steps done.
        objective: the objective's own position in its data, JSON-able.
        counters: tokens trained, FLOPs, steps skipped, ...
        tensors: weights ("model.") and optimiser ("optimiser.") by name.
        tensor_parallel: how many processes the fused projections are laid out for.
    """

    step: int
    objective: dict[str, Any]
    counters: dict[str, float]
    tensors: dict[str, Tensor]
    tensor_parallel: int = 1


class Checkpoints:
    """The checkpoints of one run: saved atomically, the last `keep` of them kept.

    In the `background`, a copy of the state is written while training goes on; the end of a `with`
    block waits for it. Several processes together write at once and wait for each other.
    """

    def __init__(self, folder: Path, keep: int, background: bool = False) -> None:
        self.folder, self.keep = folder, keep
        self.background = background and parallel.world() == 1
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def saved(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*") if p.is_dir())

    def hold_to(self, data: Sequence[Path]) -> None:
        """Notes what files the run trains on; with a checkpoint there, holds it to those.

        They are compared by content, so that a run may be moved, and a copy put back.

        Raises:
            PhikitError: a file is not what the checkpoint was trained on; names it.
        """
        note, saved = self.folder / "data.json", self.saved()
        marks = [_mark(file) for file in data]
        if not saved or not note.exists():
            write_json(note, marks)
            return
        before: list[dict[str, Any]] = read_json(note)
        for now, was in itertools.zip_longest(marks, before):
            if not now or not was or now["sha256"] != was["sha256"]:
                raise PhikitError(
                    f"{(now or was)['file']}: not what {saved[-1]} was trained on: it was "
                    f"{_described(was)}, now {_described(now)}",
                    "put the file back as it was, or train anew: in another folder, or here "
                    f"without {self.folder}",
                )

    def save(self, state: State) -> None:
        """Saves a checkpoint; an error of the one before, in the background, is raised here."""
        folder = self.folder / f"step-{state.step:08d}"
        tensors = state.tensors | {"random.torch": torch.get_rng_state()}
        rest = {
            "step": state.step, "objective": state.objective, "counters": state.counters,
            "tensor_parallel": state.tensor_parallel,
        }  # fmt: skip
        self.wait()
        if parallel.world() > 1:
            with explain_os_errors(folder, "writing"):
                sliced.write(folder, tensors, rest)
            if parallel.rank() == 0:
                self._prune()
            return
        held = {name: t.detach().contiguous() for name, t in tensors.items()}
        if self.background:
            held = {name: t.clone() for name, t in held.items()}
            self._writing = self._writer.submit(self._write, folder, held, rest)
        else:
            self._write(folder, held, rest)

    def _write(self, folder: Path, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        with explain_os_errors(folder, "writing"), atomic_directory(folder) as new:
            write_tensors(tensors, new / _FILE)
            write_json(new / "state.json", rest)
        self._prune()

    def _prune(self) -> None:
        for old in self.saved()[: -self.keep]:
            remove_directory(old)

    def wait(self) -> None:
        """Until what is being written in the background is written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.shutdown()
        if error is None:
            self.wait()

    def latest(
        self, like: Mapping[str, Tensor], fused: Parts | None = None, tensor_parallel: int = 1
    ) -> State | None:
        """The newest checkpoint, with torch's random stream set to it; None when there is none.

        Args:
            like: tensors by name, for how they are sliced over several processes.
            fused: see `phikit.train.tensors`; laid out for `tensor_parallel` processes now.

        Raises:
            PhikitError: it is corrupt; says so and how to go on.
        """
        saved = self.saved()
        if not saved:
            return None
        file = saved[-1] / _FILE
        raw = read_json(saved[-1] / "state.json")
        try:
            with explain_os_errors(file, "reading"):
                if parallel.world() == 1 and file.exists():
                    tensors = load_file(file)
                else:
                    before = raw.get("tensor_parallel", 1)
                    relaid = Relaid(fused or {}, before, tensor_parallel)
                    tensors = sliced.read(saved[-1], like, raw.get("scalars", {}), relaid)
        except SafetensorError as e:
            raise PhikitError(
                f"{file}: corrupt checkpoint ({e})",
                f"remove {saved[-1]} to go on from the checkpoint before it",
            ) from e
        torch.set_rng_state(tensors.pop("random.torch"))
        return State(raw["step"], raw["objective"], raw["counters"], tensors, tensor_parallel)

    def remove(self) -> None:
        """Removes them all, when the run is done and its model is written."""
        remove_directory(self.folder)


def _mark(file: Path) -> dict[str, Any]:
    with explain_os_errors(file, "reading"):
        return {"file": str(file), "bytes": file.stat().st_size, "sha256": sha256_file(file)}


def _described(mark: Mapping[str, Any] | None) -> str:
    if mark is None:
        return "not there"
    return f"{mark['bytes']:,} bytes with SHA-256 {mark['sha256'][:12]}…"
