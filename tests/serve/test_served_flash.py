"""phi-4-mini-flash behind the server and `phikit generate`: what the engine gives."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from flash_fixtures import CONFIG

from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import train_bpe
from phikit.cli import app
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.models.checkpoint import save
from phikit.models.flash.model import Flash
from phikit.models.load import load
from phikit.serve.worker import Settings, Worker


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flash")
    tokenizer = train_bpe(["the cat sat on the mat"] * 3, 300, NANO_SPECIAL)
    model = Flash(replace(CONFIG, vocab_size=tokenizer.vocab_size, max_positions=96))
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, folder)
    tokenizer.save(folder)
    return folder


ASKED = [Request((5, i, 7), Sampling(max_tokens=20), seed=i) for i in range(6)]


def test_a_server_gives_what_the_engine_gives(directory):
    worker = Worker("flash", directory, Settings(rows=4, share=0.1))
    found: dict[int, tuple[int, ...]] = {}

    async def ask():
        await worker.begin()
        try:
            job = await worker.start(ASKED, every=False)
            while len(found) < len(ASKED):
                for update in await job.next():
                    found[update.sample] = tuple(update.tokens)
        finally:
            await worker.stop()

    try:
        worker.wait()
        asyncio.run(ask())
    finally:
        worker.abandon()
    expected = collect(LocalEngine(load(directory)), ASKED)
    assert found == {i: group[0].completion_ids for i, group in enumerate(expected)}
    assert worker.stats["used"] == 0


def test_generate_writes_rollouts_of_a_flash_directory(directory, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt_ids": [5, 6, 7]}, {"prompt": "the cat"}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    ran = CliRunner().invoke(
        app, ["generate", str(directory), str(prompts), "--n", "3", "--max-tokens", "9"]
    )
    assert ran.exit_code == 0, ran.output
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {(f["prompt"], f["sample"]) for f in found} == {(i, j) for i in (0, 1) for j in range(3)}
    first = next(f for f in found if (f["prompt"], f["sample"]) == (0, 0))
    ask = Request((5, 6, 7), Sampling(max_tokens=9, stop_ids=()), n=1)
    same = collect(LocalEngine(load(directory)), [ask])[0][0].completion_ids
    assert tuple(first["completion_ids"]) == same[: len(first["completion_ids"])]
