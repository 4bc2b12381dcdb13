import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pivot_fixtures import FirstByte, make_inputs

from phikit.verify.base import VERIFIERS


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setitem(VERIFIERS, "first-byte", FirstByte)
    return make_inputs(tmp_path)
