import pytest
from serve_fixtures import make_directory, running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The directory of a tiny random model with phi-4-mini's chat format."""
    return make_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server(tiny):
    """The address of a server process with two models."""
    with running(f"tiny={tiny}", f"other={tiny}", "--cache", "0.02") as (url, _):
        yield url
