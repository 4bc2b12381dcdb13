"""LoRA: what training leaves alone, what PEFT reads, what merging keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from train_fixtures import tiny_model, tiny_rows
from train_runs import grpo, pairs, run

from phikit.data.pack import Batches
from phikit.errors import PhikitError
from phikit.models import checkpoint, lora
from phikit.models.decoder import Decoder
from phikit.stage import Context
from phikit.train import adapters, loop
from phikit.train.objectives.dpo import Dpo, reference_logprobs
from phikit.train.objectives.dpo_settings import DpoLoss
from phikit.train.objectives.grpo_settings import GrpoLoss
from phikit.train.objectives.next_token import NextToken
from phikit.train.settings import LoraSettings, TrainSettings

New = Callable[..., Context]
IDS = torch.randint(2, 64, (2, 20), generator=torch.Generator().manual_seed(5))


def adapted(name: str = "mine", seed: int = 0) -> Decoder:
    """A model with an adapter that does something."""
    model = tiny_model()
    adapters.adapt(model, LoraSettings(rank=4, alpha=8, name=name), seed)
    with torch.no_grad():
        for key, p in lora.parameters(model, name):
            if "lora_B" in key:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return model


def logits(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS)


def test_training_leaves_the_base_alone(new_context: New) -> None:
    model = run("lora", new_context())
    trained = dict(lora.parameters(model, "default"))
    for name, p in model.named_parameters():
        assert (name in trained) == p.requires_grad
    for (name, a), (_, b) in zip(
        lora.plain_tensors(model), tiny_model().state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert any(bool(p.any()) for n, p in trained.items() if "lora_B" in n)
    saved = next((new_context().dir / "checkpoints").iterdir()) / "tensors.safetensors"
    assert saved.stat().st_size < 4 * sum(p.numel() for p in tiny_model().parameters())


def test_merging_keeps_the_function() -> None:
    model = adapted()
    plain = adapters.merged(model)
    assert not list(lora.lora_layers(plain))
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(plain), logits(tiny_model()), atol=1e-3)
    with adapters.without(model):
        assert torch.equal(logits(model), logits(tiny_model()))
    assert adapters.active(model) == "mine"


def test_peft_reads_what_is_written(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    model = adapted()
    checkpoint.save(tiny_model(), tmp_path / "model")
    adapters.save(model, "mine", tmp_path / "adapter", str(tmp_path / "model"))
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32
    )
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(model), rtol=1e-4, atol=1e-4)


def test_several_adapters_in_one_model(tmp_path: Path) -> None:
    one, two = adapted("one", 1), adapted("two", 2)
    both = tiny_model()
    for model, name in ((one, "one"), (two, "two")):
        adapters.save(model, name, tmp_path / name)
        adapters.load(both, tmp_path / name, name)
    for model, name in ((one, "one"), (two, "two")):
        lora.activate(both, name)
        torch.testing.assert_close(logits(both), logits(model), rtol=1e-6, atol=1e-6)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    adapters.save(adapted(), "mine", tmp_path / "adapter")
    other = Decoder(tiny_model().config.__class__(**_wider(tiny_model())))
    with pytest.raises(PhikitError, match=r"qkv_proj.lora_A.weight is missing or of another"):
        adapters.load(other, tmp_path / "adapter", "mine")


def _wider(model: Decoder) -> dict[str, object]:
    config = model.config
    return {f: getattr(config, f) for f in config.__dataclass_fields__} | {"hidden_size": 48}


def test_preferences_are_measured_against_the_base(new_context: New) -> None:
    """DPO on an adapter: its loss begins at ln 2, because the base is the reference."""
    model = tiny_model()
    adapters.adapt(model, LoraSettings(rank=4), 0)
    chosen = pairs(16, 5)
    reference = reference_logprobs(model, chosen, 100, "f32")
    ctx = new_context()
    settings = TrainSettings(lr=1e-2, precision="f32", warmup=0)
    loop.train(ctx, model, Dpo(chosen, reference, DpoLoss(), 16, 100, 0), settings, 5)
    losses = [row["loss"] for row in ctx.metrics.rows]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < losses[0] - 0.01
    with adapters.without(model):
        again = reference_logprobs(model, chosen, 100, "f32")
    assert torch.equal(again, reference)


def test_rewards_train_an_adapter(new_context: New) -> None:
    """GRPO draws from the merged weights, and its KL term is taken to the base."""
    model = tiny_model()
    adapters.adapt(model, LoraSettings(rank=4), 0)
    objective = grpo(model, GrpoLoss(kl=0.1, kl_to="reference"))
    objective.reference = model
    ctx = new_context()
    loop.train(ctx, model, objective, TrainSettings(lr=1e-2, precision="f32", warmup=0), 4)
    rows = ctx.metrics.rows
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["kl"] > 1e-6
    assert all(row["engine_gap"] < 1e-4 for row in rows)


def test_dropout_is_of_training_only(new_context: New) -> None:
    model = tiny_model()
    adapters.adapt(model, LoraSettings(rank=4, dropout=0.5), 0)
    objective = NextToken(Batches(tiny_rows(), 4, 0))
    loop.train(new_context(), model, objective, TrainSettings(lr=1e-2, precision="f32"), 3)
    assert torch.equal(logits(model), logits(model))
