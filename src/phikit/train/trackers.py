"""A run's metrics in TensorBoard or trackio too, when a stage's `track` asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from phikit.errors import PhikitError, how_to_install

Tracker = Literal["tensorboard", "trackio"]


def _load(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise PhikitError(f"{name} is not installed", how_to_install("track")) from e


class Trackers:
    """Passes on the numbers of every row, as they are written to metrics.jsonl.

    TensorBoard's files go into `folder`/tensorboard; trackio keeps its own, under the project
    "phikit" and the folder's name with that of the run's. A run that goes on after `done` steps
    goes on in both: TensorBoard drops the later steps that it was shown before.

    Raises:
        PhikitError: one of them is not installed.
    """

    def __init__(self, names: Sequence[Tracker], folder: Path, done: int = 0) -> None:
        self._board: Any = None
        self._trackio: Any = None
        if "tensorboard" in names:
            _load("TensorBoard", "tensorboard")
            board = importlib.import_module("torch.utils.tensorboard")
            self._board = board.SummaryWriter(
                str(folder / "tensorboard"), purge_step=done + 1 if done else None
            )
        if "trackio" in names:
            self._trackio = _load("trackio", "trackio")
            name = "/".join(folder.resolve().parts[-2:])
            self._trackio.init(project="phikit", name=name, resume="allow" if done else "never")

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hands rows on; their numbers alone, under their own names."""
        for row in rows:
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
            if self._board is not None:
                for name, value in numbers.items():
                    self._board.add_scalar(name, value, row["step"])
            if self._trackio is not None:
                self._trackio.log(numbers, step=row["step"])

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()
        if self._trackio is not None:
            self._trackio.finish()
