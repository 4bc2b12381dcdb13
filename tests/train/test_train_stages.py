"""The stages from folders to folders: each writes a model that loads, and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from train_fixtures import SPECIAL, write_shards

from phikit.chat.format import chat_format
from phikit.chat.tokenizer import train_bpe
from phikit.errors import PhikitError
from phikit.models import checkpoint
from phikit.records import Pair, Sample, write_records
from phikit.stage import Context
from phikit.train.stages import STAGES

BY_VERB = {stage.verb: stage for stage in STAGES}
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "layers": 2, "heads": 2, "kv_heads": 1,
         "head_dim": 16}  # fmt: skip


def question(i: int) -> Sample:
    a, b = i % 7, i % 5
    return Sample(
        kind="sum", source="synthetic", verifier="exact", answer=str(a + b),
        messages=(
            {"role": "user", "content": f"What is {a} and {b}?"},
            {"role": "assistant", "content": f"Answer: {a + b}"},
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer, shards, samples and problems, as the stages before would leave them."""
    root = tmp_path_factory.mktemp("inputs")
    samples = [question(i) for i in range(40)]
    texts = [" ".join(m["content"] for m in s.messages) for s in samples]
    tokenizer = train_bpe(texts, 300, SPECIAL)
    tokenizer.save(root / "tokenizer")
    chat = chat_format(tokenizer)
    end = tokenizer.special["<|endoftext|>"]
    documents = [[*tokenizer.encode(t), end] for t in texts]
    write_shards(root, documents)
    write_records(root / "samples.parquet", samples, Sample)
    pairs = [
        Pair(
            prompt_ids=tuple(chat.render(s.prompt, generation_prompt=True).ids),
            chosen_ids=tuple(tokenizer.encode(s.answer)[:1]),
            rejected_ids=tuple(tokenizer.encode("9")[:1]),
            kind="pivot",
        )
        for s in samples
    ]
    write_records(root / "pairs.parquet", pairs, Pair)
    return {"root": root}


def run(verb: str, folder: Path, settings: dict[str, Any], **inputs: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    stage = BY_VERB[verb]
    config = stage.config(**{"checkpoint_every": 2} | settings)
    return stage.run(Context(folder, seed=1), config, inputs)


def test_from_nothing_to_rewarded(inputs: dict[str, Path], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    root = inputs["root"]
    done = run(
        "train.pretrain", tmp_path / "pre",
        {"model": SHAPE, "context": 32, "batch_rows": 4, "steps": 6, "lr": 1e-2},
        shards=root, tokenizer=root,
    )  # fmt: skip
    assert done["steps"] == 6 and done["loss_last"] < done["loss_first"]
    first = checkpoint.load(tmp_path / "pre" / "model")
    assert first.config.max_positions == 32
    assert not (tmp_path / "pre" / "checkpoints").exists()

    run(
        "train.midtrain", tmp_path / "mid", {"batch_rows": 2, "steps": 3},
        model=tmp_path / "pre", shards=root,
    )  # fmt: skip
    longer = checkpoint.load(tmp_path / "mid" / "model").config
    assert (longer.max_positions, longer.rope_theta) == (128, 50_000.0)

    sft = {"steps": 40, "batch_rows": 4, "lr": 1e-2, "context": 32, "precision": "f32"}
    done = run(
        "train.sft", tmp_path / "sft", sft,
        **{"model": tmp_path / "mid", "samples.0": root, "samples.1": root},
    )  # fmt: skip
    assert done["packing"]["examples"] == 80 and done["loss_last"] < 1.5

    done = run(
        "train.dpo", tmp_path / "dpo", {"lr": 1e-3, "batch_pairs": 8, "save_dtype": "bfloat16"},
        **{"model": tmp_path / "sft", "pairs.0": root},
    )  # fmt: skip
    assert done["pairs"] == {"pivot": 40} and done["steps"] == 5
    assert next(checkpoint.load(tmp_path / "dpo" / "model").parameters()).dtype == torch.bfloat16

    rollouts = {"prompts": 4, "group": 4, "max_tokens": 12, "think": False, "temperature": 1.5}
    done = run(
        "train.grpo", tmp_path / "grpo", {"lr": 1e-3, "steps": 4, "rollouts": rollouts},
        model=tmp_path / "sft", problems=root,
    )  # fmt: skip
    assert done["steps"] == 4 and 0 <= done["right"] <= 1
    rows = [json.loads(r) for r in (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()]
    gaps = [row["engine_gap"] for row in rows if "engine_gap" in row]
    assert gaps and max(gaps) < 0.1
    for name in ("pre", "mid", "sft", "dpo", "grpo"):
        files = {p.name for p in (tmp_path / name / "model").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files


def test_a_finished_stage_is_not_trained_again(inputs: dict[str, Path], tmp_path: Path) -> None:
    root = inputs["root"]
    settings = {"model": SHAPE, "context": 32, "batch_rows": 4, "steps": 3}
    done = run("train.pretrain", tmp_path / "a", settings, shards=root, tokenizer=root)
    before = (tmp_path / "a" / "model" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "a" / "checkpoints").mkdir()  # killed while removing them
    again = run("train.pretrain", tmp_path / "a", settings, shards=root, tokenizer=root)
    assert (tmp_path / "a" / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert {k: done[k] for k in ("steps", "tokens", "loss_last")} == {
        k: again[k] for k in ("steps", "tokens", "loss_last")
    }


def test_without_pairs_the_model_passes_through_when_that_is_allowed(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    root, empty = inputs["root"], tmp_path / "empty"
    settings = {"model": SHAPE, "context": 32, "batch_rows": 4, "steps": 1}
    run("train.pretrain", tmp_path / "pre", settings, shards=root, tokenizer=root)
    write_records(empty / "pairs.parquet", [], Pair)
    given = {"model": tmp_path / "pre", "pairs.0": empty, "pairs.1": empty}
    for _ in range(2):  # also after a kill between the model and the end
        done = run("train.dpo", tmp_path / "dpo", {"allow_empty": True}, **given)
        assert (done["note"], done["steps"]) == ("no pairs: unchanged", 0)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        before, after = (tmp_path / x / "model" / name for x in ("pre", "dpo"))
        assert before.read_bytes() == after.read_bytes()
    # pairs that do not fit are a mistake all the same
    with pytest.raises(PhikitError, match="none of 40 pairs"):
        run("train.dpo", tmp_path / "x", {"allow_empty": True, "max_tokens": 2},
            **given | {"pairs.1": root})  # fmt: skip


def test_what_a_user_may_get_wrong(inputs: dict[str, Path], tmp_path: Path) -> None:
    root = inputs["root"]
    run(
        "train.pretrain", tmp_path / "pre", {"model": SHAPE, "context": 32, "steps": 1},
        shards=root, tokenizer=root,
    )  # fmt: skip
    empty = tmp_path / "empty"
    write_records(empty / "samples.parquet", [], Sample)
    write_records(empty / "pairs.parquet", [], Pair)
    model = tmp_path / "pre"
    with pytest.raises(PhikitError, match="none of its samples"):
        run("train.sft", tmp_path / "x", {}, **{"model": model, "samples.0": empty})
    with pytest.raises(PhikitError, match="none of 0 pairs"):
        run("train.dpo", tmp_path / "x", {}, **{"model": model, "pairs.0": empty})
    with pytest.raises(PhikitError, match="leaves 192 tokens"):
        run("train.grpo", tmp_path / "x", {}, model=model, problems=root)
    with pytest.raises(PhikitError, match="multiple of"):
        bad = {"steps": 5, "loss": {"updates": 2}, "rollouts": {"max_tokens": 5}}
        run("train.grpo", tmp_path / "x", bad, model=model, problems=root)
