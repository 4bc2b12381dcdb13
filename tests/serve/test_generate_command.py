"""`phikit generate`, as a user types it."""

import json

import torch
from typer.testing import CliRunner

from phikit.cli import app
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.models import lora
from phikit.models.load import load
from phikit.train import adapters

OPTIONS = ["--n", "2", "--max-tokens", "9", "--seed", "3", "--out"]


def test_rollouts_of_a_file_here_and_over_http(tiny, server, tmp_path):
    file, out, far = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl", tmp_path / "far.jsonl"
    lines = [{"prompt_ids": [5, 6]}, {"messages": [{"role": "user", "content": "cat"}]}, "the mat"]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    base = ["generate", str(tiny), str(file), *OPTIONS]
    done = CliRunner().invoke(app, [*base, str(out)])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*base, str(far), "--url", f"{server}/v1", "--name", "tiny"])
    assert done.exit_code == 0, done.output
    rows, there = (
        {(r["prompt"], r["sample"]): r for r in map(json.loads, f.read_text().splitlines())}
        for f in (out, far)
    )
    assert sorted(rows) == [(i, j) for i in range(3) for j in range(2)]
    for key, row in rows.items():
        assert there[key]["completion_ids"] == row["completion_ids"]
        assert there[key]["text"] == row["text"]
    first = Request((5, 6), Sampling(max_tokens=9, stop_ids=()), 2, 3)
    ends = {r.completion_ids[0] for r in collect(LocalEngine(load(tiny)), [first])[0]}
    assert {rows[0, j]["completion_ids"][0] for j in range(2)} == ends


def test_rollouts_of_a_form_and_up_to_a_stop_text(tiny, tmp_path):
    file, schema, out = tmp_path / "prompts.jsonl", tmp_path / "s.json", tmp_path / "out.jsonl"
    file.write_text('"the cat"\n')
    schema.write_text('{"enum": ["the cat", "the mat"]}')
    base = ["generate", str(tiny), str(file), "--n", "4", "--max-tokens", "60", "--out", str(out)]
    done = CliRunner().invoke(app, [*base, "--schema", str(schema)])
    assert done.exit_code == 0, done.output
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert len(texts) == 4 and {json.loads(text) for text in texts} <= {"the cat", "the mat"}
    done = CliRunner().invoke(app, [*base, "--stop", "a", "--stop", "e"])
    assert done.exit_code == 0, done.output
    for row in map(json.loads, out.read_text().splitlines()):
        assert not {"a", "e"} & set(row["text"])
    done = CliRunner().invoke(app, [*base, "--schema", str(schema), "--regex", "a"])
    assert done.exit_code == 2 and "give one of them" in done.stderr


def test_a_wrong_line_is_named(tiny, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    done = CliRunner().invoke(app, ["generate", str(tiny), str(file)])
    assert done.exit_code == 2 and "line 2 is no prompt" in done.stderr


def test_prompts_choose_their_adapters(tiny, tmp_path):
    model = load(tiny)
    spec = lora.LoraSpec(4, 8, r".*(qkv|o|gate_up|down)_proj")
    lora.add(model, "x", spec)
    generator = torch.Generator().manual_seed(1)
    for _, parameter in lora.parameters(model, "x"):
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    adapters.save(model, "x", tmp_path / "x")
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    lines = [{"prompt_ids": [5, 6]}, {"prompt_ids": [5, 6], "adapter": "mine"}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    base = ["generate", str(tiny), str(file), *OPTIONS, str(out)]
    done = CliRunner().invoke(app, [*base, "--adapter", f"mine={tmp_path / 'x'}"])
    assert done.exit_code == 0, done.output
    rows = list(map(json.loads, out.read_text().splitlines()))
    texts = {(r["prompt"], r["sample"]): r["completion_ids"] for r in rows}
    assert [texts[0, i] for i in range(2)] != [texts[1, i] for i in range(2)]
    done = CliRunner().invoke(app, base)
    assert done.exit_code == 2 and "no adapter 'mine'" in done.stderr
