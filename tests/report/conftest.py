"""Run directories to report on: a whole one, and one that stopped after SFT."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_run import build


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "nano")


@pytest.fixture(scope="session")
def half_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "nano", until="sft")
