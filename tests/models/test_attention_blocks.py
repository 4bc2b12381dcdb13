"""Attention by blocks of queries against torch's own, forward and backward, around borders."""

import pytest
import torch
import torch.nn.functional as F

from phikit.models.attention import QUERY_BLOCK, causal


@pytest.mark.parametrize(
    "length", [1, 2, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, 3 * QUERY_BLOCK + 5]
)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_outputs_and_gradients_are_torch_s(length: int, heads: int, kv_heads: int) -> None:
    torch.manual_seed(length)
    q = torch.randn(2, length, heads, 16).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(2, kv_heads, length, 16, requires_grad=True) for _ in range(2))
    upstream = torch.randn(2, heads, length, 16)
    results = []
    for attend in (causal, torchs):
        out = attend(q, k, v)
        results.append((out, *torch.autograd.grad(out, (q, k, v), upstream)))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() + 1e-5


def torchs(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def test_bf16_is_as_near_to_the_truth_as_the_reference_s_plain_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, 300, 64) * 2 for h in (6, 2, 2))
    truth = torchs(*(t.double() for t in (q.bfloat16(), k.bfloat16(), v.bfloat16())))
    q, k, v = (t.bfloat16() for t in (q, k, v))
    score = q @ k.repeat_interleave(3, 1).mT * 64**-0.5
    score = score.masked_fill(torch.ones(300, 300).triu(1).bool(), float("-inf"))
    plain = score.float().softmax(-1).bfloat16() @ v.repeat_interleave(3, 1)
    error = [((t.double() - truth).norm() / truth.norm()).item() for t in (causal(q, k, v), plain)]
    assert error[0] <= 1.1 * error[1]


@pytest.mark.slow
def test_it_compiles_to_the_same() -> None:
    q, k, v = (torch.randn(1, h, 200, 16, requires_grad=True) for h in (4, 2, 2))
    explained = torch._dynamo.explain(causal)(q, k, v)
    assert explained.graph_break_count == 0
