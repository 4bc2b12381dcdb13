"""`phikit generate`, as a user types it."""

import json

import pytest
import torch
from typer.testing import CliRunner

from phikit.chat.tokenizer import train_bpe
from phikit.cli import app
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.models import lora
from phikit.models.checkpoint import save
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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "b"}', "is no prompt"),
        ("{", "not valid JSON"),
        ("[1]", "a list, not an object"),
        ('{"prompt": "a", "seen": NaN}', "NaN is no number"),
        ('{"prompt": ""}', "the prompt is empty"),
        ('{"prompt": "\\ud800"}', "half a character"),
        ('{"prompt": 5}', "prompt is no text"),
        ('{"prompt_ids": ["a"]}', "no list of whole numbers: ['a']"),
        ('{"prompt_ids": [1.5]}', "no list of whole numbers: [1.5]"),
        ('{"prompt_ids": [99999]}', "token id 99999"),
        ('{"messages": ["a"]}', "messages is no list"),
        ('{"messages": [{"role": "usr", "content": "a"}]}', "the role 'usr'"),
        ('{"prompt": "a", "max_tokens": 5}', "--max-tokens"),
        ('{"prompt": "a", "adapter": 5}', "adapter is no name"),
        ('{"prompt": "a", "adapter": "x"}', "no adapter 'x'"),
        (json.dumps({"prompt": "cat " * 600}), "601 tokens"),
    ],
)
def test_a_wrong_line_is_named(tiny, tmp_path, line, said):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    done = CliRunner().invoke(app, ["generate", str(tiny), str(file)])
    assert done.exit_code == 2 and f"{file}:3: " in done.stderr, done.output
    assert said in done.stderr


def test_files_that_are_none_and_options_without_effect(tiny, tmp_path):
    file, binary = tmp_path / "prompts.jsonl", tmp_path / "binary.jsonl"
    file.write_text('"a"\n')
    binary.write_bytes(b'"a"\n\xff\n')
    for arguments, said in [
        ([binary], "binary.jsonl:2: not UTF-8"),
        ([file, "--out", tmp_path / "no" / "out.jsonl"], "no such file"),
        ([file, "--out", tmp_path], "Is a directory"),
        ([file, "--url", "http://localhost:1/v1", "--speculate", "lookup"], "--speculate: not"),
        ([file, "--ray", "local", "--kv-cache", "int8", "--invariant"], "--invariant, --kv-cache"),
        ([file, "--ray", "local", "--url", "http://localhost:1/v1"], "two places"),
        ([file, "--name", "x"], "give --url"),
    ]:
        done = CliRunner().invoke(app, ["generate", str(tiny), *map(str, arguments)])
        assert done.exit_code == 2 and said in done.stderr, done.output


def test_a_model_that_cannot_chat_continues_texts(tiny, tmp_path):
    base, file, out = tmp_path / "base", tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    save(load(tiny), base)
    train_bpe(["the cat sat on the mat"] * 3, 300, ("<end>",)).save(base)
    file.write_text('"the cat"\n')
    command = ["generate", str(base), str(file), *OPTIONS, str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert len(out.read_text().splitlines()) == 2
    file.write_text('{"messages": [{"role": "user", "content": "cat"}]}\n')
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "cannot chat" in done.stderr


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
