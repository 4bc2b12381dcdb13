import pytest
from engine_fixtures import CONFIGS, make

from phikit.models.decoder import Decoder


@pytest.fixture(scope="session")
def models() -> dict[str, Decoder]:
    return {name: make(config) for name, config in CONFIGS.items()}
