"""Sampling against exact probabilities computed the slow way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phikit.engine import sampling as module
from phikit.engine.base import Sampling
from phikit.engine.sampling import Settings, draw, inverse_cdf, kept, stream_key, uniforms
from phikit.errors import PhikitError

CPU = torch.device("cpu")
LOGITS = [2.0, 1.0, 0.5, 0.4, -0.3, -1.0, -2.5, 1.5]


def exact(logits, s: Sampling):
    """The sampling distribution by the definition in `engine.base`."""
    v = len(logits)
    order = sorted(range(v), key=lambda i: (-logits[i], i))
    top = max(logits)
    weight = [math.exp((x - top) / s.temperature) for x in logits]
    keep = order[: s.top_k or v]
    total, running, nucleus = sum(weight[i] for i in keep), 0.0, []
    for i in keep:
        nucleus.append(i)
        running += weight[i]
        if s.top_p < 1 and running >= s.top_p * total:
            break
    keep = [i for i in nucleus if weight[i] >= s.min_p * weight[order[0]]]
    total = sum(weight[i] for i in keep)
    return [weight[i] / total if i in keep else 0.0 for i in range(v)]


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=1.7),
    Sampling(top_k=3),
    Sampling(top_p=0.7),
    Sampling(min_p=0.3),
    Sampling(temperature=0.8, top_k=5, top_p=0.9, min_p=0.2),
]


@pytest.fixture(params=["kernels", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(module, "library", lambda: None)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("sampling", SETTINGS)
def test_frequencies_and_logprobs(sampling):
    count, probabilities = 40_000, exact(LOGITS, sampling)
    logits = torch.tensor([LOGITS]).expand(count, -1)
    keys = np.array([stream_key(7, i) for i in range(200)], dtype=np.uint64).repeat(200)
    u = torch.from_numpy(uniforms(keys, np.tile(np.arange(200), 200)))
    tokens, logp, raw = draw(logits, Settings.of([sampling] * count, CPU), u)[:3]
    seen = torch.bincount(tokens, minlength=8).tolist()
    chi2 = sum(
        (s - count * p) ** 2 / (count * p) for s, p in zip(seen, probabilities, strict=True) if p
    )
    assert not any(s for s, p in zip(seen, probabilities, strict=True) if not p)
    assert chi2 < 27  # 7 degrees of freedom: exceeded with probability 3e-4
    for token in set(tokens.tolist()):
        at = int((tokens == token).nonzero()[0])
        assert float(logp[at]) == pytest.approx(math.log(probabilities[token]), abs=1e-5)
        assert float(raw[at]) == pytest.approx(math.log(exact(LOGITS, Sampling())[token]), abs=1e-5)


@pytest.mark.usefixtures("way")
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}])
def test_hardly_any_temperature_takes_the_highest(filters):
    for temperature in (1e-300, 1e-45, 1e-40, 1e-9):
        settings = Settings.of([Sampling(temperature, **filters)], CPU)
        drawn = draw(torch.tensor([LOGITS]), settings, torch.tensor([0.99]))
        assert drawn.token_N.tolist() == [0] and drawn.logprob_N.tolist() == [0]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": math.nan}, {"temperature": math.inf}, {"presence_penalty": math.nan},
        {"frequency_penalty": math.inf}, {"repetition_penalty": 1e-40},
        {"repetition_penalty": math.inf}, {"logit_bias": ((3, math.nan),)},
        {"logit_bias": ((3, math.inf),)},
    ],
)  # fmt: skip
def test_settings_that_would_break_the_arithmetic_are_refused(setting):
    with pytest.raises(PhikitError, match=next(iter(setting))):
        Sampling(**setting)


def test_rows_with_different_settings_do_not_mix():
    mixed = [*SETTINGS, Sampling(temperature=0)]
    logits = torch.tensor([LOGITS] * len(mixed))
    u = torch.full((len(mixed),), 0.37)
    together = draw(logits, Settings.of(mixed, CPU), u)
    for i, s in enumerate(mixed):
        alone = draw(logits[:1], Settings.of([s], CPU), u[:1])
        for a, b in zip(alone[:3], together[:3], strict=True):
            assert float(a[0]) == pytest.approx(float(b[i]), abs=1e-6)


@pytest.mark.usefixtures("way")
def test_greedy_takes_the_lowest_of_equals():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    token, logp, raw = draw(logits, Settings.of([Sampling(temperature=0)], CPU), torch.zeros(1))[:3]
    assert (int(token), float(logp)) == (1, 0.0)
    assert float(raw) == pytest.approx(float(logits.log_softmax(-1)[0, 1]), abs=1e-6)


@given(
    logits=st.lists(st.integers(-8, 8), min_size=2, max_size=120),
    top_k=st.integers(0, 130),
    top_p=st.sampled_from([0.1, 0.5, 0.77, 0.95, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.21, 0.9, 1.0]),
)
def test_filters_keep_what_the_definition_keeps(logits, top_k, top_p, min_p):
    """Integer logits: many ties; up to 120 tokens: short lists of candidates and whole sorts."""
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    p = torch.tensor([logits], dtype=torch.float32).softmax(-1)
    found = kept(p, Settings.of([sampling], CPU))[0].nonzero()[:, 0].tolist()
    expected = [i for i, q in enumerate(exact([float(x) for x in logits], sampling)) if q]
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert found == sorted(order[: len(found)]), "not the most probable, or not in order of ids"
    fewer, more = sorted((len(found), len(expected)))
    assert more - fewer <= 1
    if fewer < more:  # only where rounding decides: the sum before the token, or its own share
        weight = [math.exp(logits[i] - max(logits)) for i in order]
        before = sum(weight[:fewer]) / sum(weight[: top_k or None])
        assert before == pytest.approx(top_p, rel=1e-5) or weight[fewer] == pytest.approx(min_p)


@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-6, 0.1, 1.0]), min_size=1, max_size=200),
    u=st.integers(0, 2**24 - 1),
)
def test_an_impossible_token_is_never_drawn(weights, u):
    if not any(weights):
        weights[0] = 1.0
    p = torch.tensor([weights])
    token = int(inverse_cdf(p, torch.tensor([u * 2.0**-24]))[0])
    assert token < len(weights) and weights[token] > 0


@given(
    finite=st.lists(st.booleans(), min_size=1, max_size=300),
    u=st.integers(0, 2**24 - 1),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_a_masked_token_is_never_drawn(finite, u, temperature):
    if not any(finite):
        finite[-1] = True
    logits = torch.linspace(-3, 3, len(finite))[None]
    masked = logits.masked_fill(~torch.tensor(finite)[None], -math.inf)
    settings = Settings.of([Sampling(temperature=temperature)], CPU)
    drawn = draw(logits, settings, torch.tensor([u * 2.0**-24]), masked)
    token = int(drawn.token_N[0])
    assert finite[token]
    expected = (masked / temperature).log_softmax(-1)[0, token]
    assert float(drawn.logprob_N[0]) == pytest.approx(float(expected), abs=1e-5)
    assert float(drawn.raw_N[0]) == pytest.approx(float(logits.log_softmax(-1)[0, token]), abs=1e-5)


def test_both_ways_draw_alike():
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(64, 50_001, generator=generator)
    rows = [[Sampling(), Sampling(temperature=0), Sampling(temperature=0.7, top_p=0.9),
             Sampling(temperature=0.6)][i % 4] for i in range(64)]  # fmt: skip
    settings, u = Settings.of(rows, CPU), torch.rand(64, generator=generator)
    mine = draw(logits, settings, u)
    theirs = module._draw_by_torch(logits, settings, u, None)
    assert torch.equal(mine.token_N, theirs.token_N)  # no boundary is hit by these numbers
    for a, b in zip(mine[1:3], theirs[1:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine.log_z_N1, theirs.log_z_N1, rtol=0, atol=1e-5)
    weighed = draw(logits, settings, u, weights=True)
    assert torch.equal(weighed.token_N, mine.token_N) and torch.equal(weighed.raw_N, mine.raw_N)
    assert weighed.p_NV is not None


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_refused(bad):
    logits = torch.zeros(2, 130)
    logits[1, 77] = bad
    with pytest.raises(PhikitError, match="not finite"):
        draw(logits, Settings.of([Sampling()] * 2, CPU), torch.full((2,), 0.5))


def test_streams_are_uniform_and_apart():
    keys = np.array([stream_key(s, i) for s in range(40) for i in range(50)], dtype=np.uint64)
    assert len(set(keys.tolist())) == len(keys)
    u = np.stack([uniforms(keys, np.full(len(keys), step)) for step in range(100)])
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.002 and abs(u.var() - 1 / 12) < 0.001
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.01
    assert stream_key(-1, 0) == stream_key(2**64 - 1, 0)  # any whole number is a seed
