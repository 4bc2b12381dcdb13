import openai
import pytest
from serve_fixtures import make_adapter, make_directory, running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The directory of a tiny random model with phi-4-mini's chat format."""
    return make_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def adapter(tiny, tmp_path_factory):
    """The directory of a LoRA adapter for it."""
    return make_adapter(tiny, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="session")
def server(tiny, adapter):
    """The address of a server process with two models, one of them with an adapter."""
    arguments = (f"tiny={tiny}", f"other={tiny}", "--adapter", f"other/fine={adapter}")
    with running(*arguments, "--cache", "0.02") as (url, _):
        yield url


@pytest.fixture(scope="session")
def client(server):
    """OpenAI's own client of it."""
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client
