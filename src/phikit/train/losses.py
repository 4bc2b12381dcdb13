"""Cross entropy and token log-probabilities straight from hidden states, without whole logits.

Shapes: N tokens, D model width, V vocabulary.

The head's product with all hidden states is the largest tensor of a training step (8,192 tokens ×
200,064 words in float32 = 6.5 GB). Here it exists for a chunk of tokens at a time, in the precision
of the products, which is autocast's when autocast is on; what follows is float32 (`train.logits`).
A sum over many tokens does not feel that its logits were rounded, but a token's own log-probability
does, which is held against the engine's: there logits are float32 a few rows at a time where that
can be had (`engine.logits`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from phikit.data.pack import IGNORE
from phikit.engine.logits import PACKED, head_product
from phikit.train.gradients import place_of_sum, slope_to_come
from phikit.train.held import held
from phikit.train.logits import cache_rows, sums, write_slopes
from phikit.train.native.products import outer_sum, product_runs

CHUNK_BYTES = 96 << 20  # of logits in all
# Adding up the head's gradient costs the head's size in every chunk, so chunks of a large
# vocabulary have this many rows, if that many fit.
CHUNK_ROWS = 1024


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
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    entropy: bool = True,
) -> TokenLogprobs:
    """Log-probability of each target and entropy, both differentiable; logits are made twice.

    Without `entropy` it is not computed and comes out as zeros.
    """
    return TokenLogprobs(*_TokenLogprobs.apply(hidden_ND, head_VD, targets_N, temperature, entropy))


def _precision(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _cut(total: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, total)) for start in range(0, total, rows)]


def _chunks(tokens: int, vocabulary: int, dtype: torch.dtype) -> list[slice]:
    """The tokens whose slopes exist at the same time."""
    fitting = min(CHUNK_ROWS, CHUNK_BYTES // (dtype.itemsize * vocabulary))
    return _cut(tokens, max(cache_rows(vocabulary), fitting))


class _Head:
    """The head in the precision of products.

    Attributes:
        wide: its product unrounded; None for torch's own.
    """

    def __init__(self, head_VD: Tensor, dtype: torch.dtype, wide: bool = False) -> None:
        self.head_VD = head_VD
        self.weight_VD = head_VD.to(dtype)
        self.wide = head_product(self.weight_VD, PACKED) if wide else None


def _wide_head(head_VD: Tensor, dtype: torch.dtype) -> _Head:
    return held(head_VD, ("head", dtype), lambda: _Head(head_VD, dtype, wide=True))


class _Part(NamedTuple):
    """Some rows of a chunk."""

    rows: slice
    logits_RV: Tensor
    targets_R: Tensor


class _Chunk:
    """Tokens whose slopes exist at the same time.

    Attributes:
        hidden_CD: in the precision of products.
        slopes_CV: room for the slopes by the logits; rounded logits lie there themselves.
    """

    def __init__(self, head: _Head, hidden_CD: Tensor, targets_C: Tensor, slopes: bool) -> None:
        self.head, self.targets_C = head, targets_C
        self.hidden_CD = hidden_CD.to(head.weight_VD.dtype)
        self.slopes_CV = self.hidden_CD.new_empty(0)
        if head.wide is None:
            self.slopes_CV = self.hidden_CD @ head.weight_VD.T
        elif slopes:
            self.slopes_CV = self.hidden_CD.new_empty(len(hidden_CD), len(head.weight_VD))

    def parts(self) -> Iterator[_Part]:
        """All rows at once, or a cacheful at a time where their logits are float32."""
        count = len(self.hidden_CD)
        wide = self.head.wide
        size = count if wide is None else cache_rows(len(self.head.weight_VD))
        for rows in _cut(count, size):
            logits = self.slopes_CV if wide is None else wide(self.hidden_CD[rows])
            yield _Part(rows, logits, self.targets_C[rows])

    def back(self, grad_hidden: Tensor | None, grad_head: _Sum | None) -> None:
        """From the slopes to the gradients of the chunk's hidden states and of the head."""
        if grad_hidden is not None:
            grad_hidden.copy_(self.slopes_CV @ self.head.weight_VD)
        if grad_head is not None:
            grad_head.add(self.slopes_CV, self.hidden_CD)


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
        ctx.slope = slope = slope_to_come()
        loss, nll = hidden_ND.new_zeros(2, dtype=torch.float64)
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_head = _Sum(head_VD) if wants_head else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head = _Head(head_VD, dtype)
            for chunk in _chunks(n, vocabulary, dtype):
                made = _Chunk(head, hidden_ND[chunk], targets_N[chunk], wants_hidden or wants_head)
                for rows, logits_RV, t in made.parts():
                    log_z, target, _, total = sums(logits_RV, t, temperature)
                    nll += (log_z - target).sum()
                    loss += (log_z - (1 - label_smoothing) * target).sum()
                    if label_smoothing:
                        loss -= label_smoothing / vocabulary * total.sum()
                    if z_loss:
                        loss += z_loss * log_z.square().sum()
                    if wants_hidden or wants_head:
                        write_slopes(
                            logits_RV, made.slopes_CV[rows], t, temperature, log_z,
                            slope * (1 + 2 * z_loss * log_z),
                            torch.full_like(log_z, slope * (label_smoothing - 1.0)),
                            everywhere=-slope * label_smoothing / vocabulary,
                        )  # fmt: skip
                made.back(None if grad_hidden is None else grad_hidden[chunk], grad_head)
        ctx.grads = (grad_hidden, None if grad_head is None else grad_head.whole())
        loss, nll = loss.float(), nll.float()
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.grads = ctx.grads, None  # given away, not copied
        more = grads[0] / ctx.slope
        if float(more) != 1.0:
            made = tuple(None if x is None else x * more for x in made)
        return *made, None, None, None, None


class _Sum:
    """A head's gradient: a sum over chunks in float32 of slopesᵀ · hidden.

    torch rounds each chunk's; one alone stays as it is where its target has its precision.

    Args:
        place: where to add it up, and whether to what is there.
    """

    def __init__(self, like: Tensor, place: tuple[Tensor, bool] | None = None) -> None:
        self.like = like
        self.native = product_runs(like)
        self.in_place = place is not None
        self.total: Tensor | None
        self.total, self.begun = place or (None, False)

    def add(self, slopes_CV: Tensor, hidden_CD: Tensor) -> None:
        if self.native and slopes_CV.dtype == torch.bfloat16:
            if self.total is None:
                self.total = torch.empty_like(self.like, dtype=torch.float32)
            outer_sum(slopes_CV, hidden_CD.contiguous(), self.total, self.begun)
        else:
            x = slopes_CV.T @ hidden_CD
            if self.total is None:
                self.total = x if x.dtype == self.like.dtype else x.float()
            elif self.begun:
                self.total = self.total.float().add_(x)
            else:
                self.total.copy_(x)
        self.begun = True

    def whole(self) -> Tensor | None:
        """After the last chunk, the gradient to return; None if it was added up in place."""
        if self.total is None:
            self.total = torch.empty_like(self.like, dtype=torch.float32)
        if not self.begun:  # there was no token
            self.total.zero_()
        return None if self.in_place else self.total


class _TokenLogprobs(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype, ctx.temperature = _precision(hidden_ND), temperature
        logprobs = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        entropy = torch.zeros_like(logprobs)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head = _wide_head(head_VD, ctx.dtype)
            for chunk in _chunks(len(hidden_ND), len(head_VD), ctx.dtype):
                made = _Chunk(head, hidden_ND[chunk], targets_N[chunk], False)
                for rows, logits_RV, t in made.parts():
                    log_z, target, mean, _ = sums(logits_RV, t, temperature)
                    logprobs[chunk][rows] = target - log_z
                    if with_entropy:
                        entropy[chunk][rows] = log_z - mean
        ctx.save_for_backward(hidden_ND, head_VD, targets_N, entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, head_VD, targets_N, entropy_N = ctx.saved_tensors
        grad_logprobs_N, grad_entropy_N = grads
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_head = _Sum(head_VD, place_of_sum(head_VD)) if wants_head else None
        with_entropy = bool(grad_entropy_N.any())
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head = _wide_head(head_VD, ctx.dtype)
            for chunk in _chunks(len(hidden_ND), len(head_VD), ctx.dtype):
                made = _Chunk(head, hidden_ND[chunk], targets_N[chunk], True)
                for rows, logits_RV, t in made.parts():
                    log_z = sums(logits_RV, t, ctx.temperature).log_z_C
                    up, up_entropy = grad_logprobs_N[chunk][rows], None
                    p_factor = -up
                    if with_entropy:  # dH/dy = -p (log p + H)
                        up_entropy = grad_entropy_N[chunk][rows]
                        p_factor = p_factor - up_entropy * entropy_N[chunk][rows]
                    write_slopes(
                        logits_RV, made.slopes_CV[rows], t, ctx.temperature, log_z, p_factor, up,
                        None if up_entropy is None else -up_entropy,
                    )  # fmt: skip
                made.back(None if grad_hidden is None else grad_hidden[chunk], grad_head)
        return grad_hidden, None if grad_head is None else grad_head.whole(), None, None, None
