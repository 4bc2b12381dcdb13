"""A model's conversations with itself."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from phikit.chat.format import chat_format
from phikit.chat.templates import PHI4
from phikit.chat.tokenizer import train_bpe
from phikit.errors import PhikitError
from phikit.files import cache_folder
from phikit.models.checkpoint import save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.records import Rollout, Sample, read_records
from phikit.stage import Context
from phikit.synth.rehearsal import RehearsalConfig, questions, run_rehearsal

SMOLLM2 = cache_folder() / "smollm2"
TOKENIZER = train_bpe(["What is 1 + 1? Answer: 2\n"] * 20, 300, list(PHI4.control()))
FORMAT = chat_format(TOKENIZER)


def said(text: str, finish: str = "stop") -> Rollout:
    ids = (*TOKENIZER.encode(text), FORMAT.end_id)
    return Rollout(prompt_ids=(1,), completion_ids=ids, logprobs=(0.0,) * len(ids), finish=finish)


def test_which_questions_are_kept() -> None:
    known, dropped = {"and now?"}, Counter[str]()
    drawn = [
        said("What is 1 + 1?"), said(" what is  1 + 1? "), said("And now?"), said("  "),
        said("And", finish="length"), said("And 2?"), said("caf\ufffd"),
    ]  # fmt: skip
    assert list(questions(FORMAT, drawn, known, dropped)) == ["What is 1 + 1?", "And 2?"]
    assert dropped == {
        "repeated questions": 2, "unreadable questions": 2, "unfinished questions": 1,
    }  # fmt: skip
    assert known == {"and now?", "what is 1 + 1?", "and 2?"}


@pytest.mark.parametrize("turns", [["user"], ["system", "user"], ["assistant"]])
def test_an_opening_is_what_a_rendered_first_message_begins_with(turns: list[str]) -> None:
    ids = FORMAT.render([{"role": turns[0], "content": "What is"}]).ids
    opening = FORMAT.opening(turns[0])
    assert tuple(ids[: len(opening)]) == opening
    assert TOKENIZER.decode(ids[len(opening) :]).startswith("What is<|im_end|>")
    with pytest.raises(PhikitError, match="nobody"):
        FORMAT.opening("nobody")


def test_a_model_that_never_ends_is_told(tmp_path: Path) -> None:
    config = DecoderConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=16, layers=1, heads=2, kv_heads=1,
        head_dim=8, intermediate_size=32, max_positions=128,
    )  # fmt: skip
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # all tokens alike: what ends at the first is empty
        model.model.norm.weight.fill_(0)
    TOKENIZER.save(tmp_path / "model")
    save(model, tmp_path / "model")
    short = RehearsalConfig(count=3, tries=2, prompt_tokens=1, max_tokens=2)
    with pytest.raises(PhikitError, match=r"none of the model's \d+ questions.*questions"):
        run_rehearsal(Context(dir=tmp_path, seed=1), short, {"model": tmp_path})
    assert not (tmp_path / "samples.parquet").exists()


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.exists(), reason="phikit fetch smollm2")
def test_smollm2_talks_to_itself(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(SMOLLM2)
    config = RehearsalConfig(count=8, max_tokens=90, precision="bf16")
    for name in ("a", "b"):
        ctx = Context(dir=tmp_path / name, seed=5)
        ctx.dir.mkdir()
        done = run_rehearsal(ctx, config, {"model": tmp_path})
    made = read_records(tmp_path / "a" / "samples.parquet", Sample)
    assert len(made) == done["accepted"] <= 8 and len(made) >= 3
    a, b = (tmp_path / name / "samples.parquet" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    assert len({s.messages[0]["content"] for s in made}) == len(made)
    for sample in made:
        roles = [m["role"] for m in sample.messages]
        assert roles == ["user", "assistant"] and sample.kind == "rehearsal"
        assert all("<|im" not in m["content"] and m["content"] for m in sample.messages)
    assert ctx.cost.tokens_generated > 0 and ctx.cost.flops > 0
