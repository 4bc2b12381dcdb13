"""An engine that computes as training does gives its samples the same log-probabilities."""

from dataclasses import replace

import pytest
import torch
from engine_fixtures import PLAIN, make
from hypothesis import given, settings
from hypothesis import strategies as st

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.load import load
from phikit.engine.local import LocalEngine
from phikit.engine.native.build import library
from phikit.engine.native.step import trained_obstacle
from phikit.errors import PhikitError
from phikit.files import cache_folder
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig, LongRope
from phikit.records import Rollout
from phikit.train.fast import fast_layers
from phikit.train.loop import autocast
from phikit.train.objectives.trees import plant

SMOLLM2 = cache_folder() / "smollm2"
#: What training's kernels multiply with, and groups of heads that a tile does not hold.
SHAPE = replace(
    PLAIN, hidden_size=320, intermediate_size=256, layers=4, heads=5, kv_heads=1, head_dim=64,
    vocab_size=513, max_positions=1024, eos_ids=(),
)  # fmt: skip
LONG = LongRope((1.25,) * 24, (4.0,) * 24, original_max_positions=512)
SHAPES = {
    "grouped": SHAPE,
    "partly rotated": replace(
        SHAPE, heads=6, kv_heads=3, head_dim=96, rope_fraction=0.5, long_rope=LONG, tied=True
    ),
    "wide heads": replace(SHAPE, heads=2, kv_heads=2, head_dim=160),
}


def model_of(shape: DecoderConfig) -> Decoder:
    """Weights in float32 that bfloat16 does not hold, and logits far apart."""
    model = make(shape, sharpness=8.0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> Decoder:
    made = model_of(SHAPES[request.param])
    if reason := trained_obstacle(made, library()):
        pytest.skip(reason)
    return made


def forward(model: Decoder, samples: list[list[Rollout]], gradients: bool = False) -> torch.Tensor:
    """Training's log-probabilities: a prompt with all its completions is one tree."""
    forest = plant([(g[0].prompt_ids, [r.completion_ids for r in g]) for g in samples])
    with torch.set_grad_enabled(gradients), fast_layers(model), autocast(model, "bf16"):
        return forest.logprobs(model).logprobs_N.detach()


def raw(samples: list[list[Rollout]]) -> torch.Tensor:
    return torch.tensor([x for group in samples for r in group for x in r.raw_logprobs])


def held(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """As near as two sums over a vocabulary in float32 are."""
    assert len(ours) and (ours - theirs).abs().mean() < 2e-6 and (ours - theirs).abs().max() < 3e-5


@pytest.mark.parametrize("gradients", [False, True])
def test_samples_have_the_log_probabilities_of_the_forward_pass(
    model: Decoder, gradients: bool
) -> None:
    prompts = [tuple(range(1, 1 + n)) for n in (1, 2, 31, 32, 33, 90)]
    requests = [
        Request(p, Sampling(max_tokens=45), n=1 + i % 3, seed=i) for i, p in enumerate(prompts)
    ]
    samples = collect(LocalEngine(model, max_batch=5, as_trained=True), requests)
    held(raw(samples), forward(model, samples, gradients))
    ordinary = collect(LocalEngine(model, max_batch=5, dtype=torch.bfloat16), requests)
    assert (raw(ordinary) - forward(model, ordinary)).abs().mean() > 1e-4, "a test of nothing"


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_no_bit_depends_on_what_else_there_is(model: Decoder, data: st.DataObject) -> None:
    ids = st.lists(st.integers(1, 500), min_size=1, max_size=70).map(tuple)
    prompts = data.draw(st.lists(ids, min_size=2, max_size=5))
    requests = [Request(p, Sampling(max_tokens=12), n=2, seed=9) for p in prompts]
    batch = data.draw(st.integers(1, 9))
    together = collect(LocalEngine(model, max_batch=batch, as_trained=True), requests)
    alone = collect(LocalEngine(model, max_batch=1, as_trained=True), requests[:1])
    assert together[0] == alone[0]
    held(raw(together), forward(model, together))


def test_changed_weights_are_seen() -> None:
    model = model_of(SHAPE)
    if reason := trained_obstacle(model, library()):
        pytest.skip(reason)
    engine = LocalEngine(model, max_batch=4, as_trained=True)
    request = Request((5, 6, 7), Sampling(max_tokens=30), n=4, seed=1)
    first = collect(engine, [request])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
    second = collect(engine, [request])
    held(raw(second), forward(model, second))
    assert raw(first).tolist() != raw(second).tolist()


def test_what_cannot_be_had_is_said() -> None:
    windowed = make(replace(SHAPE, sliding_window=16))
    with pytest.raises(PhikitError, match="last 16 positions"):
        LocalEngine(windowed, as_trained=True)
    plain = make(SHAPE)
    for other in ({"invariant": True}, {"cache": "int8"}, {"dtype": torch.float32}):
        with pytest.raises(PhikitError, match="as_trained does not go with"):
            LocalEngine(plain, as_trained=True, **other)
    with pytest.raises(PhikitError, match=r"heads of 40|matrix unit"):
        LocalEngine(make(replace(SHAPE, heads=8, head_dim=40)), as_trained=True)


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.exists(), reason="phikit fetch smollm2")
def test_smollm2_off_the_policy_is_on_it() -> None:
    """The difference that is 0.017 between an ordinary engine and the trainer."""
    narrow = load(SMOLLM2, torch.bfloat16)
    if reason := trained_obstacle(narrow, library()):
        pytest.skip(reason)
    requests = [
        Request(p, Sampling(max_tokens=40), n=8, seed=2)
        for p in ((504, 3575, 282, 4649, 314), (9906, 11, 335), (1782, 216, 33, 32, 1232, 216))
    ]
    samples = collect(LocalEngine(narrow, max_batch=24, as_trained=True), requests)
    wide = Decoder(narrow.config).float()
    wide.load_state_dict({k: v.float() for k, v in narrow.state_dict().items()})
    held(raw(samples), forward(wide, samples))
