"""What `phikit serve` refuses before it begins."""

import json

import pytest
from typer.testing import CliRunner

from phikit.cli import app


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a={tiny}", "b={tiny}", "--adapter", "x={tiny}"], "MODEL/ says which"),
        (["a={tiny}", "--adapter", "x"], "is not [MODEL/]NAME=DIR"),
        (["a={tiny}", "--adapter", "a={tiny}"], "two models are named 'a'"),
        (["a={tiny}", "a={tiny}"], "two models are named 'a'"),
        (["a={tiny}", "--adapter", "x={tiny}"], "adapter_config.json"),
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
