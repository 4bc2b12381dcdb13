"""Which teacher a stage's settings mean: a model on this machine, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from phikit.errors import PhikitError
from phikit.files import cache_folder
from phikit.synth.remote_teacher import Endpoint, RemoteTeacher
from phikit.synth.replies import ReplyStore
from phikit.synth.stored_teacher import StoredTeacher


class HasTeacher(Protocol):
    """What the settings of a stage with a teacher have.

    `local`: a model on this machine; `batch`: answers that it generates at once; `teacher`: the
    endpoint in its place, and the budget of both.
    """

    @property
    def local(self) -> str: ...

    @property
    def batch(self) -> int: ...

    @property
    def teacher(self) -> Endpoint: ...


def teacher_of(
    config: HasTeacher, inputs: Mapping[str, Path], store: ReplyStore, seed: int
) -> StoredTeacher:
    """The teacher of a stage: the model it is given as an input, a local one, or the endpoint's.

    Raises:
        PhikitError: there is none.
    """
    path = inputs.get("model")
    if path is not None or config.local:
        from phikit.synth.local_teacher import LocalTeacher

        model = find_model(path if path is not None else Path(config.local))
        name = "model" if path is not None else config.local
        structured = config.teacher.structured
        return LocalTeacher.of(model, store, config.teacher, config.batch, seed, name, structured)
    if not config.teacher.url:
        raise PhikitError(
            "there is no teacher",
            "set teacher.url and teacher.model (an OpenAI-compatible .../v1), or local=MODEL, or "
            "give the input model",
        )
    if config.teacher.batch_api:
        from phikit.synth.batch_teacher import BatchTeacher

        return BatchTeacher(config.teacher, store)
    return RemoteTeacher(config.teacher, store)


def find_model(path: Path) -> Path:
    """The model that a stage's folder, a model's folder or the name of a fetched model means.

    Raises:
        PhikitError: it is not on this machine.
    """
    cached = cache_folder() / path
    for place in (path, path / "model", cached):
        if (place / "config.json").exists() or place.suffix == ".gguf":
            return place
    raise PhikitError(f"no model {str(path)!r} on this machine", f"phikit fetch {path}")
