"""LoRA: what training leaves alone, what PEFT reads, what merging keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from train_fixtures import tiny_model, tiny_rows
from train_runs import StopAfter, grpo, pairs, run

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
from phikit.train.objectives.trees import plant
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


def test_a_target_that_matches_nothing_is_named_even_beside_one_that_does() -> None:
    for targets in (("q_proj",), ("qkv_proj", "q_proj")):
        with pytest.raises(PhikitError, match="no linear layer named 'q_proj'"):
            adapters.adapt(tiny_model(), LoraSettings(targets=targets), 0)


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


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_depends_on_the_seed_alone(recompute: bool, new_context: New) -> None:
    """Not on threads that compute side by side, nor on where a run was cut off."""

    def weights(name: str, threads: int, stops: Sequence[int] = ()) -> bytes:
        settings = TrainSettings(
            lr=1e-2, precision="f32", warmup=2, recompute=recompute, checkpoint_every=3
        )
        for stop in (*stops, 0):
            model = tiny_model()
            adapters.adapt(model, LoraSettings(rank=4, dropout=0.3), 0)
            ctx = new_context(name, threads=2)
            ctx.progress = StopAfter(stop)
            objective = NextToken(Batches(tiny_rows(), 8, 0), microbatch=2)
            with suppress(KeyboardInterrupt):
                loop.train(ctx, model, objective, settings, 9)
        adapters.save(model, "default", ctx.dir / "adapter")
        return (ctx.dir / "adapter" / "adapter_model.safetensors").read_bytes()

    one = weights("one", 1)
    assert all(weights(f"two-{i}", 2) == one for i in range(3))
    assert weights("cut", 2, [2, 5, 7]) == one


def test_the_policy_that_drew_has_no_dropout() -> None:
    model = tiny_model()
    adapters.adapt(model, LoraSettings(rank=4, dropout=0.5), 0)
    with torch.no_grad():
        for _, p in lora.parameters(model, "default"):
            p.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    objective = grpo(model.train(), GrpoLoss(updates=2))
    for micro in objective.draw(0).micros:
        assert micro.old_N is not None
        torch.testing.assert_close(micro.old_N, micro.engine_N, rtol=1e-4, atol=1e-4)
    assert model.training


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_an_adapter_on_the_head_is_trained(dropout: float, tmp_path: Path) -> None:
    """Though its layer is never called: the logits' chunks are of what it is widened to."""
    model = tiny_model()
    targets = ("qkv_proj", "lm_head")
    adapters.adapt(model, LoraSettings(rank=3, targets=targets, dropout=dropout), 0)
    with torch.no_grad():
        for _, p in lora.parameters(model, "default"):
            p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(p)))
    trained = dict(lora.parameters(model, "default"))
    assert len(trained) == 6
    forest = plant([(tuple(IDS[0, :5].tolist()), (tuple(IDS[0, 5:9].tolist()),))])
    torch.manual_seed(3)
    got = forest.logprobs(model.train(not dropout), 0.7).logprobs_N
    if dropout:
        model.eval()
    grads = torch.autograd.grad(got.sum(), trained.values())
    plain = model(IDS[:1, :9])[0, 4:8].div(0.7).log_softmax(-1)
    plain = plain.gather(1, IDS[0, 5:9, None])[:, 0]
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-5)
    for one, other in zip(grads, torch.autograd.grad(plain.sum(), trained.values()), strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # merged it is a head of its own, which the embeddings do not follow
    whole = adapters.merged(model)
    assert not whole.config.tied
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-5, atol=1e-5)
    checkpoint.save(whole, tmp_path / "model", torch.float32)
    torch.testing.assert_close(
        logits(checkpoint.load(tmp_path / "model")), logits(model), rtol=1e-5, atol=1e-5
    )


def test_the_head_s_adapter_in_every_objective(new_context: New) -> None:
    def adapted_by(name: str, objective_of: Callable[[Decoder], object]) -> Decoder:
        model = tiny_model()
        adapters.adapt(model, LoraSettings(rank=4, targets=("lm_head",)), 0)
        settings = TrainSettings(lr=0.1, precision="bf16", warmup=0)
        ctx = new_context(name, threads=2)
        loop.train(ctx, model, objective_of(model), settings, 3)  # type: ignore[arg-type]
        assert all(row["grad_norm"] > 0 for row in ctx.metrics.rows)
        return model

    chosen = pairs(16, 5)
    reference = reference_logprobs(tiny_model(), chosen, 100, "bf16")
    for name, objective in {
        "sft": lambda model: NextToken(Batches(tiny_rows(), 4, 0), 2, 0.1, 1e-4),
        "dpo": lambda model: Dpo(chosen, reference, DpoLoss(), 8, 40, 0),
        "grpo": lambda model: grpo(model, GrpoLoss(kl=0.1), precision="bf16"),
    }.items():
        model = adapted_by(name, objective)
        if name == "grpo":  # drawn from the merged head, in bfloat16 too
            gaps = [row["engine_gap"] for row in new_context(name).metrics.rows]
            assert max(gaps) < 0.03, gaps
        assert all(bool(p.any()) for _, p in lora.parameters(model, "default"))


@pytest.mark.parametrize(
    "made",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\..*(qkv|down)_proj"},
        {"target_modules": ["o_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
        {"target_modules": ["qkv_proj", "lm_head"], "use_rslora": True},
    ],
)
def test_what_peft_writes_is_read(made: dict[str, object], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    checkpoint.save(tiny_model(), tmp_path / "model")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32
    )
    config = peft.LoraConfig(
        r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **made
    )
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = tiny_model()
    adapters.load(ours, tmp_path / "adapter", "theirs")
    lora.activate(ours, "theirs")
    with torch.no_grad():
        wanted = theirs(IDS).logits
    torch.testing.assert_close(logits(ours), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(adapters.merged(ours)), wanted, rtol=1e-4, atol=1e-4)
    adapters.save(ours, "theirs", tmp_path / "again", str(tmp_path / "model"))
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32
    )
    back = peft.PeftModel.from_pretrained(base, tmp_path / "again").eval()
    with torch.no_grad():
        torch.testing.assert_close(back(IDS).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "made", [{"alpha_pattern": {"o_proj": 16}}, {"use_dora": True}, {"rank_pattern": {"o_proj": 2}}]
)
def test_an_adapter_that_is_not_plain_is_refused(made: dict[str, object], tmp_path: Path) -> None:
    adapters.save(adapted(), "mine", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | made))
    with pytest.raises(PhikitError, match=f"{next(iter(made))} is .* not supported"):
        adapters.load(tiny_model(), tmp_path / "adapter", "mine")
