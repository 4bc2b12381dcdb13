"""A tiny model in a directory, and a real server process on loopback."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import torch

from phikit.chat.templates import PHI4_MINI
from phikit.chat.tokenizer import train_bpe
from phikit.models import lora
from phikit.models.checkpoint import save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.models.load import load
from phikit.train import adapters

TEXT = ["the cat sat on the mat 🙂 € ü and said functools to them; then it ate all of it"] * 3
SPECIAL = tuple(dict.fromkeys((*PHI4_MINI.control(), *PHI4_MINI.inner)))


def make_directory(directory: Path, context: int = 512, hidden_size: int = 32) -> Path:
    tokenizer = train_bpe(TEXT, 330, SPECIAL)
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=hidden_size,
        intermediate_size=2 * hidden_size - 16, layers=2, heads=2, kv_heads=1,
        head_dim=16, max_positions=context,
    )  # fmt: skip
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    save(model, directory)
    tokenizer.save(directory)
    return directory


def make_adapter(model: Path, directory: Path) -> Path:
    weights = load(model)
    lora.add(weights, "fine", lora.LoraSpec(4, 8, r".*(qkv|o|gate_up|down)_proj"))
    generator = torch.Generator().manual_seed(1)
    for _, parameter in lora.parameters(weights, "fine"):
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    adapters.save(weights, "fine", directory)
    return directory


@contextlib.contextmanager
def running(*arguments: str):
    """A server on a free port: its address, and the process."""
    command = [sys.executable, "-m", "phikit", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                yield found[1], process
                break
        else:
            raise AssertionError("".join(said))
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        rest = process.stderr.read()
        process.stderr.close()
        assert "Traceback" not in rest, rest
