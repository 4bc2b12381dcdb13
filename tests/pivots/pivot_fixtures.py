"""A tiny random model whose first token alone decides, as the tests of the search need it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from phikit.chat.tokenizer import train_bpe
from phikit.models.checkpoint import save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.pivot_runs import Job
from phikit.records import Sample, Verdict, write_records
from phikit.verify.base import Problem

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]


class FirstByte:
    """Passes an answer whose first byte is below 0x80: about half of a random model's."""

    name = "first-byte"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [
            Verdict(passed=ok, score=float(ok), reason="", verifier=self.name)
            for ok in (bool(text) and text[0] != "\ufffd" for _, text in items)
        ]


def make_inputs(tmp_path: Path, problems: int = 4) -> dict[str, Path]:
    """The model in sft/model and its problems in problems/."""
    tokenizer = train_bpe(["no merges"], 256 + len(SPECIAL), SPECIAL)
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, layers=1, heads=2,
        kv_heads=1, head_dim=8, max_positions=64, tied=True, init_std=0.1,
    )  # fmt: skip
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, tmp_path / "sft" / "model")
    tokenizer.save(tmp_path / "sft" / "model")
    samples = [
        Sample(kind=f"kind-{i % 2}", source="synthetic", verifier="first-byte",
               messages=({"role": "user", "content": f"question {i}"},))
        for i in range(problems)
    ]  # fmt: skip
    write_records(tmp_path / "problems" / "samples.parquet", samples, Sample)
    return {"model": tmp_path / "sft", "problems": tmp_path / "problems"}


SETTINGS = ("max_tokens=5", "batch=64", "measure=8", "tokens_per_question=8000")


def job(inputs: dict[str, Path], **changed: object) -> Job:
    """The search that the tests' folder holds, or one that differs from it."""
    given: dict[str, object] = {
        "model": inputs["model"] / "model", "problems": inputs["problems"], "settings": SETTINGS
    }  # fmt: skip
    return Job(**(given | changed))  # type: ignore[arg-type]
