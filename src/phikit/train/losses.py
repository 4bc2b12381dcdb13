"""Cross entropy and token log-probabilities straight from hidden states, without whole logits.

Shapes: N tokens, D model width, V vocabulary.

The head's product with all hidden states is the largest tensor of a training step (8,192 tokens ×
200,064 words in float32 = 6.5 GB). Here it exists only a few rows at a time: small enough to stay
in the cache, which is also why this is no slower than the plain functions at a small vocabulary.
Matrix products run in autocast's precision when autocast is on; everything else in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from phikit.data.pack import IGNORE

CHUNK_BYTES = 8 << 20  # of float32 logits at a time: about the size of a core's cache


class CrossEntropy(NamedTuple):
    """Sums over the tokens: the `loss` to differentiate, and the plain `nll` for metrics."""

    loss: Tensor
    nll: Tensor


class TokenLogprobs(NamedTuple):
    """Natural-log probability of each target, and the entropy of the distribution it is from."""

    logprobs_N: Tensor
    entropy_N: Tensor


def trained_rows(hidden_BLD: Tensor, targets_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states and targets of the trained positions only: the head is spared the rest."""
    targets_N = targets_BL.reshape(-1)
    hidden_ND = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])
    kept = targets_N != IGNORE
    if bool(kept.all()):
        return hidden_ND, targets_N
    rows = kept.nonzero().squeeze(1)
    return hidden_ND.index_select(0, rows), targets_N[rows]


def cross_entropy(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
) -> CrossEntropy:
    """Summed cross entropy of `hidden @ head.T / temperature` against the targets.

    Gradients are computed along with the loss, chunk by chunk, so each chunk's logits are made
    once. Only `loss` can be differentiated.

    Args:
        label_smoothing: share of the target spread evenly over the vocabulary.
        z_loss: factor of log(Z)², which keeps the logits from drifting (PaLM, section 5).
    """
    return CrossEntropy(
        *_CrossEntropy.apply(hidden_ND, head_VD, targets_N, label_smoothing, z_loss, temperature)
    )


def token_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> TokenLogprobs:
    """Log-probability of each target and entropy, both differentiable; logits are made twice."""
    return TokenLogprobs(*_TokenLogprobs.apply(hidden_ND, head_VD, targets_N, temperature))


def _precision(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    rows = max(16, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


def _softmax(
    hidden_CD: Tensor, head_VD: Tensor, targets_C: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities [C, V], log Z [C], the target's logit [C] and the logits' sum over V [C]."""
    logits_CV = (hidden_CD @ head_VD.T).float()
    if temperature != 1.0:
        logits_CV /= temperature
    target_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1)
    sum_C = logits_CV.sum(1)
    top_C = logits_CV.amax(1)
    p_CV = logits_CV.sub_(top_C[:, None]).exp_()
    z_C = p_CV.sum(1)
    p_CV /= z_C[:, None]
    return p_CV, z_C.log() + top_C, target_C, sum_C


class _CrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        label_smoothing: float,
        z_loss: float,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        n, vocabulary = len(hidden_ND), len(head_VD)
        dtype = _precision(hidden_ND)
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        loss, nll = hidden_ND.new_zeros(2, dtype=torch.float64)
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head = head_VD.to(dtype)
            for part in _chunks(n, vocabulary):
                h, t = hidden_ND[part].to(dtype), targets_N[part]
                p, log_z, target, total = _softmax(h, head, t, temperature)
                nll += (log_z - target).sum()
                mean = total / vocabulary
                loss += (log_z - (1 - label_smoothing) * target - label_smoothing * mean).sum()
                if z_loss:
                    loss += z_loss * log_z.square().sum()
                    p *= (1 + 2 * z_loss * log_z)[:, None]
                if not (wants_hidden or wants_head):
                    continue
                p.scatter_add_(1, t[:, None], p.new_full((len(t), 1), label_smoothing - 1.0))
                if label_smoothing:
                    p -= label_smoothing / vocabulary
                if temperature != 1.0:
                    p /= temperature
                p = p.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = p @ head
                if grad_head is not None:
                    grad_head += p.T @ h
        ctx.save_for_backward(grad_hidden, grad_head)
        loss, nll = loss.float(), nll.float()
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * scale,
            None if grad_head is None else grad_head * scale,
            None, None, None, None,
        )  # fmt: skip


class _TokenLogprobs(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype, ctx.temperature = _precision(hidden_ND), temperature
        logprobs = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        entropy = torch.empty_like(logprobs)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head = head_VD.to(ctx.dtype)
            for part in _chunks(len(hidden_ND), len(head_VD)):
                h = hidden_ND[part].to(ctx.dtype)
                p, log_z, target, _ = _softmax(h, head, targets_N[part], temperature)
                logprobs[part] = target - log_z
                entropy[part] = torch.special.entr(p).sum(1)
        ctx.save_for_backward(hidden_ND, head_VD, targets_N, entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, head_VD, targets_N, entropy_N = ctx.saved_tensors
        grad_logprobs_N, grad_entropy_N = grads
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        with_entropy = bool(grad_entropy_N.any())
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head = head_VD.to(ctx.dtype)
            for part in _chunks(len(hidden_ND), len(head_VD)):
                h, t = hidden_ND[part].to(ctx.dtype), targets_N[part]
                p, _, _, _ = _softmax(h, head, t, ctx.temperature)
                grad_C1 = grad_logprobs_N[part, None]
                if with_entropy:
                    # dH/dz = -p (log p + H); p log p is 0 where p is
                    turn = torch.special.entr(p) - p * entropy_N[part, None]
                    d = turn.mul_(grad_entropy_N[part, None]).sub_(p.mul_(grad_C1))
                else:
                    d = p.mul_(-grad_C1)
                d.scatter_add_(1, t[:, None], grad_C1)
                if ctx.temperature != 1.0:
                    d /= ctx.temperature
                d = d.to(ctx.dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = d @ head
                if grad_head is not None:
                    grad_head += d.T @ h
        return grad_hidden, grad_head, None, None
