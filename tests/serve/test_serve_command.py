"""What `phikit serve` refuses before it begins."""

import json

import httpx
import pytest
from serve_fixtures import make_directory, running
from typer.testing import CliRunner

from phikit.cli import app
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.load import load
from phikit.engine.local import LocalEngine


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a={tiny}", "b={tiny}", "--adapter", "x={tiny}"], "MODEL/ says which"),
        (["a={tiny}", "--adapter", "x"], "is not [MODEL/]NAME=DIR"),
        (["a={tiny}", "--adapter", "a={tiny}"], "two models are named 'a'"),
        (["a={tiny}", "a={tiny}"], "two models are named 'a'"),
        (["a={tiny}", "--adapter", "x={tiny}"], "adapter_config.json"),
        (["a={tiny}", "--quant", "int3"], "int3"),
        (["a={tiny}", "--kv-cache", "int4"], "give 'int8'"),
        (["a={tiny}", "--kv-cache", "int8"], "needs the C kernels: the weights are torch.float32"),
        (["a={tiny}", "--speculate", "nowhere"], "nowhere"),
    ],
)
def test_arguments_that_are_wrong(tiny, arguments, says):
    told = [one.format(tiny=tiny) for one in arguments]
    done = CliRunner().invoke(app, ["serve", *told, "--port", "0", "--cache", "0.01"])
    assert done.exit_code == 2 and says in " ".join(done.stderr.split())


def test_a_model_that_cannot_be_served(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    done = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", "0"])
    assert done.exit_code == 2 and str(tmp_path) in done.stderr.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lookup", "itself"])
def test_guesses_change_no_token(tiny, how):
    ids = (5, 6, 7, 5, 6, 7, 5, 6)
    guesser = str(tiny) if how == "itself" else how
    with running(f"a={tiny}", "--speculate", guesser, "--cache", "0.02") as (url, _):
        body = {"model": "a", "prompt": list(ids), "max_tokens": 30, "temperature": 0,
                "ignore_eos": True, "return_token_ids": True}  # fmt: skip
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    request = Request(ids, Sampling(temperature=0, max_tokens=30))
    drawn = collect(LocalEngine(load(tiny)), [request])[0][0].completion_ids
    assert tuple(answer["choices"][0]["token_ids"]) == drawn


@pytest.mark.slow
def test_a_model_is_quantised_once_and_served(tmp_path, tmp_path_factory, monkeypatch):
    """Its answers are those of the copy that `phikit quantize` would make."""
    source = make_directory(tmp_path_factory.mktemp("wide"), hidden_size=64)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    ids, drawn = (5, 6, 7), set()
    for _ in range(2):
        with running(f"a={source}", "--quant", "int8", "--cache", "0.02") as (url, _):
            body = {
                "model": "a", "prompt": list(ids), "max_tokens": 8, "temperature": 0,
                "ignore_eos": True, "return_token_ids": True,
            }  # fmt: skip
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
            drawn.add(tuple(answer["choices"][0]["token_ids"]))
    [copy] = (home / ".cache" / "phikit" / "quantised").iterdir()
    request = Request(ids, Sampling(temperature=0, max_tokens=8))
    assert drawn == {collect(LocalEngine(load(copy)), [request])[0][0].completion_ids}
