"""`phikit quantize` end to end, its memory, and GPTQ on a real model."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_fixtures import CONFIGS, make
from typer.testing import CliRunner

from phikit import fetch
from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import train_bpe
from phikit.cli import app
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.load import load
from phikit.engine.local import LocalEngine
from phikit.engine.quant import calibrate, check, files
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme
from phikit.engine.quant.settings import Settings
from phikit.evals import quantised
from phikit.models import checkpoint
from phikit.models.decoder import Decoder

PEAK = """
import sys, threading
from pathlib import Path
from phikit.engine.quant import files
from phikit.engine.quant.settings import Settings
def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon"))
dense, small, warm = map(Path, sys.argv[1:])
files.convert(warm, small.with_name("warm-out"), Settings())  # what is imported on the way
before, done, peak = own(), threading.Event(), 0
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, own())
watching = threading.Thread(target=watch)
watching.start()
files.convert(dense, small, Settings())
done.set()
watching.join()
print(peak - before)
"""


def test_the_command_on_a_tiny_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    checkpoint.save(make(replace(CONFIGS["phi"], **sizes)), tmp_path / "dense")
    dense, out = str(tmp_path / "dense"), tmp_path / "small"
    ran = CliRunner().invoke(app, ["quantize", dense, "--to", "int8", "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    layer = load(out).model.layers[0].mlp.down_proj
    assert isinstance(layer, QuantLinear) and layer.scheme == Scheme("int8", 0)
    assert CliRunner().invoke(app, ["quantize", dense, "--to", "int8"]).exit_code != 0
    again = CliRunner().invoke(app, ["quantize", dense, "--to", "int4", "--out", str(out)])
    assert again.exit_code == 0 and load(out).model.layers[0].mlp.down_proj.scheme == Scheme()


@pytest.mark.parametrize("out", ["dense", "mine", "file"])
def test_nothing_but_a_quantised_model_is_written_over(tmp_path: Path, out: str) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    checkpoint.save(make(replace(CONFIGS["phi"], **sizes)), tmp_path / "dense")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    ran = CliRunner().invoke(
        app, ["quantize", str(tmp_path / "dense"), "--out", str(tmp_path / out)]
    )
    assert ran.exit_code == 2 and "choose another folder" in ran.stderr
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_text_that_is_not_read_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    checkpoint.save(make(replace(CONFIGS["phi"], **sizes)), tmp_path / "dense")
    (tmp_path / "text").write_bytes(b"a\n\xff")
    command = ["quantize", str(tmp_path / "dense"), "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, [*command, "--text", str(tmp_path / "text")])
    assert ran.exit_code == 2 and "--method is rtn" in ran.stderr
    ran = CliRunner().invoke(app, [*command, "--method", "gptq", "--text", str(tmp_path / "text")])
    assert ran.exit_code == 2 and "text:2: byte 0xff" in ran.stderr


@pytest.mark.slow
def test_one_table_of_what_each_way_costs(tmp_path: Path) -> None:
    tokenizer = train_bpe(["the cat sat on the mat, and ate 12 of it"] * 3, 330, NANO_SPECIAL)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "max_positions": 256}
    config = replace(CONFIGS["phi"], vocab_size=tokenizer.vocab_size, **sizes)
    checkpoint.save(make(config).to(torch.bfloat16), tmp_path)
    tokenizer.save(tmp_path)
    ran = CliRunner().invoke(app, ["quantize", str(tmp_path), "--check"])
    assert ran.exit_code == 0, ran.output
    head, *rows = [line.split() for line in ran.stdout.splitlines()]
    assert head[:5] == ["weights", "cache", "KL", "top-1", "perplexity"]
    kinds = ["bf16", "int8 rtn", "int4 rtn", "int4 gptq"]
    names = [" ".join(r[: len(r) - 7]) for r in rows]
    assert names == [f"{kind} {cache}" for kind in kinds for cache in ("bf16", "int8")]
    plain, narrowed = [float(r[-7]) for r in rows[::2]], [float(r[-7]) for r in rows[1::2]]
    assert plain[0] == 0 < plain[1] < plain[3] and plain[1] < plain[2]
    assert 0 < narrowed[0] < plain[2]


def test_the_table_as_json_tells_of_the_cache(tmp_path: Path) -> None:
    tokenizer = train_bpe(["the cat sat on the mat, and ate 12 of it"] * 3, 330, NANO_SPECIAL)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "max_positions": 256}
    config = replace(CONFIGS["phi"], vocab_size=tokenizer.vocab_size, **sizes)
    checkpoint.save(make(config).to(torch.bfloat16), tmp_path / "dense")
    tokenizer.save(tmp_path / "dense")
    command = ["quantize", str(tmp_path / "dense"), "--to", "int8", "--out", str(tmp_path / "int8")]
    ran = CliRunner().invoke(app, [*command, "--check", "--json"])
    assert ran.exit_code == 0, ran.output
    rows = json.loads(ran.stdout)
    assert [(r["name"], r["cache"]) for r in rows] == [
        (name, cache) for name in ("bf16", "int8 rtn") for cache in ("bf16", "int8")
    ]
    heads = config.layers * config.kv_heads * 2
    assert [r["cache_bytes"] for r in rows] == [None, heads * 20, None, heads * 20]
    assert rows[0]["distance"]["kl"] == 0 < rows[1]["distance"]["kl"]
    refused = CliRunner().invoke(app, [*command, "--json"])
    assert refused.exit_code == 2 and "give --check as well" in refused.stderr


def test_the_distance_of_the_cache_is_that_of_the_engines_steps() -> None:
    """In the model's own precision its rounding alone is lost; in 8 bits what decoding loses."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "max_positions": 256}
    model = make(replace(CONFIGS["phi"], **sizes)).to(torch.bfloat16)
    ids = torch.randint(0, model.config.vocab_size, (4, 200))
    ways = [check.Cached(model, cache, 200) for cache in ("", "int8")]
    wide, narrowed = check.distances(model, ways, ids)
    assert wide.kl < 0.75 * narrowed.kl < 1e-3 and wide.agreement > 0.95
    engine = LocalEngine(model, cache="int8")
    prompt, told = tuple(ids[0, :70].tolist()), Sampling(temperature=0, max_tokens=12)
    [[rollout]] = collect(engine, [Request(prompt, told)])
    logits = ways[1](torch.tensor([[*prompt, *rollout.completion_ids[:-1]]]))
    logprobs = torch.log_softmax(logits[0, 69:], -1)
    found = logprobs.gather(1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
    assert found.tolist() == pytest.approx(rollout.raw_logprobs, abs=0.06)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_neither_the_source_nor_the_result_is_whole_in_memory(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "head_dim": 64, "layers": 12}
    config = replace(CONFIGS["phi"], **sizes)
    checkpoint.save(Decoder(config).to(torch.bfloat16), tmp_path / "dense", shard_bytes=2**26)
    tiny = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    checkpoint.save(make(replace(CONFIGS["phi"], **tiny)), tmp_path / "warm")
    folders = [str(tmp_path / name) for name in ("dense", "small", "warm")]
    command = [sys.executable, "-c", PEAK, *folders]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    # a matrix of 8 million weights at work, a few rows of it in float32
    result = files.total_bytes(tmp_path / "small")
    assert result < 0.3 * files.total_bytes(tmp_path / "dense")
    assert int(ran.stdout) < 0.5 * result


def first_layers(source: Path, count: int, out: Path) -> Path:
    """A model's first layers between its embedding and its head, as a model."""
    whole = load(source)
    assert isinstance(whole, Decoder)
    less = Decoder(replace(whole.config, layers=count)).to(torch.bfloat16)
    ignored = less.load_state_dict(whole.state_dict(), strict=False)
    assert not ignored.missing_keys
    checkpoint.save(less, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out / name)
    return out


@pytest.mark.slow
def test_gptq_is_nearer_than_rounding_on_a_real_model(tmp_path: Path) -> None:
    """SmolLM2's first eight layers; all thirty take five times as long and say the same."""
    source = first_layers(fetch.resolve("smollm2", say=lambda line: None), 8, tmp_path / "dense")
    for method in ("rtn", "gptq"):
        how = Settings(Scheme(), method=method)
        calibrate.quantise(source, tmp_path / method, how, count=8)
    dense, rtn, gptq = (load(p) for p in (source, tmp_path / "rtn", tmp_path / "gptq"))
    ids_BL = quantised.held_out(source, dense)[:3]
    far, near = check.distances(dense, [rtn, gptq], ids_BL)
    assert near.kl < 0.5 * far.kl
    assert near.agreement > far.agreement
