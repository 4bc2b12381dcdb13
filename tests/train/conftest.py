"""A tiny model, and a stage context to train in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from train_fixtures import tiny_model

from phikit.models.decoder import Decoder
from phikit.stage import Context


@pytest.fixture
def model() -> Decoder:
    return tiny_model()


@pytest.fixture
def new_context(tmp_path: Path) -> Callable[..., Context]:
    """Contexts in folders of their own; the same name is the same folder."""
    torch.set_num_threads(1)

    def make(name: str = "run", **settings: object) -> Context:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Context(folder, **settings)  # type: ignore[arg-type]

    return make
