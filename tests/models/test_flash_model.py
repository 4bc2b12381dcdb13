"""The flash model against its equations: logits, gradients, packing, and every way to cache."""

from __future__ import annotations

import flash_reference
import pytest
import torch
from flash_fixtures import CONFIG, SIZES, made, random_ids

from phikit.errors import PhikitError
from phikit.models.flash import attention
from phikit.models.flash.model import Flash
from phikit.models.flash.state import SharedKV


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short row already takes several blocks of queries and pieces of the cache."""
    monkeypatch.setattr(SharedKV.__init__, "__defaults__", (8,))
    monkeypatch.setattr(attention, "QUERY_BLOCK", 7)


def reference(model: Flash, ids: list[int]) -> torch.Tensor:
    weights = {n: t.detach().double() for n, t in model.state_dict().items()}
    return flash_reference.logits(weights, SIZES, ids)


@pytest.mark.parametrize("length", [1, 3, 40])
def test_logits_are_those_of_the_equations(length: int) -> None:
    model, ids = made(torch.float64), random_ids(2, length)
    out = model(ids)
    for row in range(2):
        torch.testing.assert_close(
            out[row], reference(model, ids[row].tolist()), rtol=1e-10, atol=1e-10
        )


def test_float32_is_within_the_house_bound() -> None:
    model, ids = made(torch.float32), random_ids(1, 50)
    right = reference(model, ids[0].tolist())
    error = (model(ids)[0].double() - right).abs().max() / right.abs().max()
    assert error < 1e-5


def test_bfloat16_keeps_its_decays_wide_and_stays_close() -> None:
    model, ids = made(torch.float32).bfloat16(), random_ids(1, 50)
    assert model.model.layers[0].attn.A_log.dtype == torch.float32
    assert model.model.layers[1].attn.inner_cross_attn.lambda_q1.dtype == torch.float32
    assert model.model.layers[1].attn.Wqkv.weight.dtype == torch.bfloat16
    right = reference(model, ids[0].tolist())  # of the rounded weights: what arithmetic costs
    state = model.new_state(1)
    steps = [model.prefill(ids[:, :20], state)]
    steps += [model.step(ids[:, t], state) for t in range(20, 50)]
    for out, wanted in ((model(ids)[0], right), (torch.cat(steps), right[19:])):
        assert out.dtype == torch.bfloat16
        # a bfloat16 number is within 0.004 of what it stands for; there are 16 sublayers
        assert (out.double() - wanted).norm() / wanted.norm() < 0.05


def test_gradients_are_those_of_the_equations() -> None:
    model, ids = made(torch.float64), random_ids(1, 20)
    tied = {"lm_head.weight"}
    weights = {n: t.detach().clone().requires_grad_(n not in tied)
               for n, t in model.state_dict().items()}  # fmt: skip
    right = flash_reference.logits(weights, SIZES, ids[0].tolist())
    pull = torch.randn(right.shape, generator=torch.Generator().manual_seed(4)).double()
    (right * pull).sum().backward()
    (model(ids)[0] * pull).sum().backward()
    for name, parameter in model.named_parameters():
        wanted = weights[name].grad
        assert wanted is not None and parameter.grad is not None, name
        assert wanted.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-8, atol=1e-9, msg=name)


def test_the_mamba_layer_is_that_of_transformers() -> None:
    """A reference that others wrote, for the layer whose equations are the longest."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    theirs = MambaMixer(
        MambaConfig(hidden_size=32, state_size=3, expand=2, conv_kernel=4, time_step_rank=5),
        layer_idx=0,
    )
    ours = made(torch.float32).model.layers[0].attn
    theirs.load_state_dict(ours.state_dict())
    x_BLD = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours(x_BLD)[0], theirs(x_BLD), rtol=1e-4, atol=1e-5)


def test_a_packed_row_is_its_documents_side_by_side() -> None:
    model = made(torch.float64)
    lengths = [1, 2, 13, 5, 19]
    ids = random_ids(1, sum(lengths))
    segments = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)])[None]
    packed = model.hidden(ids, segments)
    alone = [model.hidden(part) for part in ids.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("parts", [[23], [1] * 23, [5, 1, 9, 8], [22, 1], [2, 21]])
def test_any_cut_of_prefill_and_steps_gives_the_same_logits(parts: list[int]) -> None:
    """Chunks longer and shorter than the window (6), up to every position by itself."""
    model, ids = made(torch.float64), random_ids(3, 40)
    whole = model(ids)
    state, at = model.new_state(3), 0
    for n in parts:
        out = model.prefill(ids[:, at : at + n], state)
        at += n
        torch.testing.assert_close(out, whole[:, at - 1], rtol=1e-9, atol=1e-9)
    for t in range(at, 40):
        out = model.step(ids[:, t], state)
        torch.testing.assert_close(out, whole[:, t], rtol=1e-9, atol=1e-9)


def test_rows_of_different_lengths_enter_at_different_times() -> None:
    model, ids = made(torch.float64), random_ids(4, 40)
    whole = model(ids)
    counts = torch.tensor([17, 3, 1, 9])
    state = model.new_state(3)
    out = model.prefill(ids[:3, :17], state, counts[:3])
    torch.testing.assert_close(out, whole[torch.arange(3), counts[:3] - 1], rtol=1e-9, atol=1e-9)
    for t in range(4):
        out = model.step(ids[torch.arange(3), counts[:3] + t], state)
    state.add()
    assert model.prefill(ids[3:, :5], state, rows_B=torch.tensor([3]), logits=False) is None
    model.prefill(ids[3:, 5:9], state, rows_B=torch.tensor([3]))
    # a second, ragged part for rows that hold something already
    parts = torch.stack((ids[2, 5:12], ids[0, 21:28]))
    model.prefill(parts, state, torch.tensor([7, 2]), torch.tensor([2, 0]))
    at = torch.tensor([23, 7, 12, 9])
    assert state.lengths.tolist() == at.tolist()
    for t in range(12):
        out = model.step(ids[torch.arange(4), at + t], state)
        torch.testing.assert_close(out, whole[torch.arange(4), at + t], rtol=1e-9, atol=1e-9)


def test_forked_moved_and_dropped_rows_go_on_as_they_were() -> None:
    model, ids = made(torch.float64), random_ids(3, 30)
    ids[1:, :11] = ids[0, :11]
    whole = model(ids)
    state = model.new_state(1)
    model.prefill(ids[:1, :11], state)
    state.fork(0, 2)
    for t in range(11, 20):
        out = model.step(ids[:, t], state)
        torch.testing.assert_close(out, whole[:, t], rtol=1e-9, atol=1e-9)
    state.keep([2, 0])
    for t in range(20, 30):
        out = model.step(ids[[2, 0], t], state)
        torch.testing.assert_close(out, whole[[2, 0], t], rtol=1e-9, atol=1e-9)
    state.keep([])
    state.add(2)
    again = model.prefill(ids[:2, :7], state)
    torch.testing.assert_close(again, whole[:2, 6], rtol=1e-9, atol=1e-9)


def test_prefill_leaves_the_upper_half_out_but_for_the_last_token() -> None:
    model, ids = made(torch.float32), random_ids(2, 25)
    seen: dict[int, int] = {}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(
            lambda _, args, index=index: seen.__setitem__(index, args[0].shape[1])
        )
    model.prefill(ids, model.new_state(2))
    full = CONFIG.full_layer
    assert seen == {i: 25 if i < full else 1 for i in range(CONFIG.layers)}


def test_what_cannot_be_done_is_refused_by_name() -> None:
    model = made(torch.float32)
    state = model.new_state(2)
    with pytest.raises(PhikitError, match=r"rows \[2\] are not"):
        model.prefill(random_ids(1, 3), state, rows_B=torch.tensor([2]))
    with pytest.raises(PhikitError, match="a step of 1 tokens for a state of 2 rows"):
        model.step(torch.tensor([1]), state)
    with pytest.raises(PhikitError, match="would have 65 positions; the context is 64"):
        model.prefill(random_ids(2, 65), state)
    with pytest.raises(PhikitError, match="rows of"):
        model.prefill(random_ids(2, 5), state, torch.tensor([5, 0]))
