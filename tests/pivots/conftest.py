import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pivot_fixtures import FirstByte, job, make_inputs

from phikit import pivot_runs
from phikit.verify.base import VERIFIERS


@pytest.fixture(scope="session", autouse=True)
def verifier() -> Iterator[None]:
    VERIFIERS["first-byte"] = FirstByte
    yield
    del VERIFIERS["first-byte"]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    return make_inputs(tmp_path)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("made"), problems=2)


@pytest.fixture(scope="session")
def found(made: dict[str, Path]) -> Path:
    """The folder of one finished search, which no test changes."""
    out = made["model"].parent / "found"
    pivot_runs.run(job(made), out)
    return out
