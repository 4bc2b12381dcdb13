"""Drawing one token per row: filters, inverse CDF, log-probabilities, random streams.

Shapes: N rows, V vocabulary. Each row draws from a random stream of its own, a counter-based
generator keyed by (seed, sample number) and indexed by the step, so what a row draws depends on
nothing but its own request.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from phikit.engine.base import Sampling
from phikit.engine.native.build import library
from phikit.engine.native.draw import draw_rows
from phikit.errors import PhikitError

#: of one step: (token, log-probability as sampled, and as the model's own), the likeliest first
Top = tuple[tuple[int, float, float], ...]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 64  # the inverse CDF looks for the block first, then inside it
_CANDIDATES = 32  # enough for most nuclei; rows that need more are sorted whole
# below it a temperature's inverse is no float32; here already all but the highest logit are at 0
_COLDEST = float(np.finfo(np.float32).tiny)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014), on uint64 with wrap-around."""
    z = z + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def stream_key(seed: int, sample: int) -> int:
    """The key of the random stream of sample number `sample` under `seed`."""
    mask = (1 << 64) - 1
    first = _mix(np.array([seed & mask], dtype=np.uint64))
    return int(_mix(first ^ np.array([sample & mask], dtype=np.uint64))[0])


def uniforms(keys_N: np.ndarray, steps_N: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per row, a multiple of 2^-24, as float32."""
    bits = _mix(keys_N + steps_N.astype(np.uint64) * _GAMMA)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


@dataclass(frozen=True)
class Settings:
    """The sampling settings of N rows as columns, and which work they make needless."""

    temperature_N1: Tensor
    top_k_N: Tensor
    top_p_N: Tensor
    min_p_N: Tensor
    greedy_N: Tensor
    all_greedy: bool
    any_greedy: bool
    unit: bool  # every row samples at temperature 1
    filtered: bool
    filtered_N1: Tensor
    tops: bool  # a row asks for the likeliest tokens

    @classmethod
    def of(cls, rows: Sequence[Sampling], device: torch.device) -> Settings:
        """The columns of rows with these settings."""
        greedy = [s.temperature == 0 for s in rows]
        filters = [bool(s.temperature and (s.top_k or s.top_p < 1 or s.min_p)) for s in rows]

        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            temperature_N1=column([max(s.temperature or 1.0, _COLDEST) for s in rows])[:, None],
            top_k_N=column([s.top_k for s in rows], torch.int64),
            top_p_N=column([s.top_p for s in rows]),
            min_p_N=column([s.min_p for s in rows]),
            greedy_N=column(greedy, torch.bool),
            all_greedy=all(greedy),
            any_greedy=any(greedy),
            unit=all(s.temperature in (0, 1) for s in rows),
            tops=any(s.top_logprobs for s in rows),
            filtered=any(filters),
            filtered_N1=column(filters, torch.bool)[:, None],
        )

    def only(self, row_P: Tensor) -> Settings:
        """Those of some rows, all of which are filtered."""
        return Settings(
            self.temperature_N1[row_P], self.top_k_N[row_P], self.top_p_N[row_P],
            self.min_p_N[row_P], self.greedy_N[row_P], False, False, self.unit, True,
            self.filtered_N1[row_P], self.tops,
        )  # fmt: skip


class Drawn(NamedTuple):
    """What a step drew.

    Attributes:
        token_N: tokens; logprob_N, raw_N: their log-probabilities under the sampling distribution,
            and under the model's own.
        p_NV: the sampling distribution, up to a factor per row; None when all rows are greedy, or
            where it was not wanted.
        log_z_N1: log of the sum of the model's own exponentials.
    """

    token_N: Tensor
    logprob_N: Tensor
    raw_N: Tensor
    p_NV: Tensor | None
    log_z_N1: Tensor


def draw(
    logits_NV: Tensor,
    settings: Settings,
    uniform_N: Tensor,
    adjusted_NV: Tensor | None = None,
    weights: bool = False,
) -> Drawn:
    """Draws a token per row. How a row is drawn depends on its own settings alone.

    Args:
        logits_NV: the model's, float32.
        uniform_N: a number in [0, 1) per row.
        adjusted_NV: what to sample from, when penalties or biases make that another thing.
        weights: whether the sampling distribution is wanted.

    Raises:
        PhikitError: a logit is NaN or infinite, so the weights are broken.
    """
    built = library() if logits_NV.device.type == "cpu" else None
    if built is None:
        return _draw_by_torch(logits_NV, settings, uniform_N, adjusted_NV)
    whole = None
    if weights and not settings.all_greedy:
        whole = _draw_by_torch(logits_NV, settings, uniform_N, adjusted_NV)
    temperature_N = settings.temperature_N1[:, 0].masked_fill(settings.greedy_N, 0.0)
    token_N, logprob_N, raw_N, log_z_N = draw_rows(
        built, logits_NV, temperature_N, uniform_N, adjusted_NV
    )
    _check_finite(log_z_N)
    if settings.filtered:
        row_P = settings.filtered_N1[:, 0].nonzero()[:, 0]
        if whole is None:
            some_PV = None if adjusted_NV is None else adjusted_NV[row_P]
            some = _draw_by_torch(logits_NV[row_P], settings.only(row_P), uniform_N[row_P], some_PV)
            columns = some[:3]
        else:
            columns = (whole.token_N[row_P], whole.logprob_N[row_P], whole.raw_N[row_P])
        for mine_N, theirs_P in zip((token_N, logprob_N, raw_N), columns, strict=True):
            mine_N[row_P] = theirs_P
    p_NV = None if whole is None else whole.p_NV
    return Drawn(token_N, logprob_N, raw_N, p_NV, log_z_N[:, None])


def _check_finite(log_z_N: Tensor) -> None:
    if not bool(torch.isfinite(log_z_N).all()):
        raise PhikitError(
            "the model's logits are not finite numbers",
            "its weights hold NaN or infinity: training diverged, or the checkpoint is broken",
        )


def _draw_by_torch(
    logits_NV: Tensor, settings: Settings, uniform_N: Tensor, adjusted_NV: Tensor | None
) -> Drawn:
    """`draw` for all filters and devices."""
    top_N1 = logits_NV.amax(-1, keepdim=True)
    raw_NV = torch.softmax(logits_NV, -1)
    log_z_N1 = top_N1 - _log(raw_NV.amax(-1, keepdim=True))
    _check_finite(log_z_N1)
    own_NV, p_NV = logits_NV, None
    if adjusted_NV is not None:
        logits_NV = adjusted_NV
    if settings.all_greedy:
        token_N1 = logits_NV.argmax(-1, keepdim=True)
        logp_N1 = torch.zeros_like(log_z_N1)
    else:
        p_NV = raw_NV
        if not settings.unit:
            if adjusted_NV is not None:
                top_N1 = logits_NV.amax(-1, keepdim=True)
            p_NV = torch.softmax((logits_NV - top_N1) / settings.temperature_N1, -1)
        elif adjusted_NV is not None:
            p_NV = torch.softmax(logits_NV, -1)
        if settings.filtered:
            p_NV = p_NV * kept(p_NV, settings)
        token_N1 = inverse_cdf(p_NV, uniform_N)[:, None]
        chosen_N1 = p_NV.gather(1, token_N1)
        if settings.filtered:
            # the others' sum is 1 but for rounding, and is not to depend on their neighbours
            chosen_N1 = torch.where(settings.filtered_N1, chosen_N1 / _total(p_NV), chosen_N1)
        logp_N1 = _log(chosen_N1)
        if settings.any_greedy:
            greedy_N1 = settings.greedy_N[:, None]
            token_N1 = torch.where(greedy_N1, logits_NV.argmax(-1, keepdim=True), token_N1)
            logp_N1 = logp_N1.masked_fill(greedy_N1, 0.0)
    raw_N1 = own_NV.gather(1, token_N1) - log_z_N1
    return Drawn(token_N1[:, 0], logp_N1[:, 0], raw_N1[:, 0], p_NV, log_z_N1)


def likeliest(logits_NV: Tensor, drawn: Drawn, rows: Sequence[Sampling]) -> list[Top]:
    """For each row as many tokens as it asks for, by the model's own probability."""
    wanted = [i for i, s in enumerate(rows) if s.top_logprobs]
    most = min(max(rows[i].top_logprobs for i in wanted), logits_NV.shape[1])
    row_P = torch.tensor(wanted, device=logits_NV.device)
    best = logits_NV[row_P].topk(most, -1)
    raw_PK = best.values - drawn.log_z_N1[row_P]
    greedy_P = torch.tensor([rows[i].temperature == 0 for i in wanted], device=logits_NV.device)
    logp_PK = torch.where(best.indices == drawn.token_N[row_P][:, None], 0.0, -math.inf)
    if drawn.p_NV is not None:
        p_PV = drawn.p_NV[row_P]
        chosen_PK = _log(p_PV.gather(1, best.indices) / _total(p_PV))
        logp_PK = torch.where(greedy_P[:, None], logp_PK, chosen_PK)
    found: list[Top] = [()] * len(rows)
    for i, *lists in zip(
        wanted, best.indices.tolist(), logp_PK.tolist(), raw_PK.tolist(), strict=True
    ):
        found[i] = tuple(zip(*(x[: rows[i].top_logprobs] for x in lists), strict=True))
    return found


def _log(x: Tensor) -> Tensor:
    """The logarithm, of each number as if it were alone: torch takes the last few numbers of a
    tensor another way, so each is put at the head of a line."""
    lines = x.reshape(-1, 1).expand(-1, 32)
    if len(lines) <= 512:  # no more than one thread takes
        return lines.contiguous().log()[:, 0].reshape(x.shape)
    return torch.cat([part.contiguous().log()[:, 0] for part in lines.split(512)]).view(x.shape)


def _total(p_NV: Tensor) -> Tensor:
    """The sum of each row, [N, 1]: torch would let several threads add up a single row."""
    rows_NV = torch.cat((p_NV, p_NV)) if len(p_NV) == 1 else p_NV
    return rows_NV.sum(-1, keepdim=True)[: len(p_NV)]


def inverse_cdf(p_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The first token of each row at which the running sum of p exceeds uniform × total: [N].

    The running sum is taken over blocks first and then inside one block, which reads the row once
    with vector instructions. A token of probability zero is never drawn.
    """
    n, v = p_NV.shape
    if v % _BLOCK:
        p_NV = torch.nn.functional.pad(p_NV, (0, _BLOCK - v % _BLOCK))
    p_NCE = p_NV.view(n, -1, _BLOCK)
    sums_NC = p_NCE.sum(-1).cumsum(-1)
    target_N1 = uniform_N[:, None] * sums_NC[:, -1:]
    block_N1 = _first_above(sums_NC, target_N1)
    before_N1 = sums_NC.gather(1, (block_N1 - 1).clamp(min=0)).masked_fill(block_N1 == 0, 0.0)
    inside_NE = p_NCE.gather(1, block_N1[..., None].expand(n, 1, _BLOCK))[:, 0].cumsum(-1)
    return (block_N1 * _BLOCK + _first_above(inside_NE, target_N1 - before_N1))[:, 0]


def _first_above(sums_NC: Tensor, target_N1: Tensor) -> Tensor:
    """First column whose running sum exceeds the target: [N, 1].

    When rounding leaves none, the last column that added anything.
    """
    first_N1 = (sums_NC <= target_N1).sum(-1, keepdim=True)
    last_N1 = (sums_NC < sums_NC[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(first_N1, last_N1)


def kept(p_NV: Tensor, settings: Settings) -> Tensor:
    """Which tokens the filters leave, as booleans [N, V]; equal probabilities go by lowest id.

    Filters: top-k, then top-p of what is left, then min-p. All three keep a head of the tokens in
    descending order of probability, so only the head's length and its least probability are
    needed: for most rows a short list of candidates decides, the others are sorted whole.
    """
    v = p_NV.shape[1]
    widest = int(settings.top_k_N.max())
    width = min(v, max(_CANDIDATES, widest))
    least_N1, ties_N1, open_N = _head(p_NV.topk(width, -1).values, settings, width == v)
    if bool(open_N.any()):
        rows = open_N.nonzero()[:, 0]
        least, ties, _ = _head(p_NV[rows].sort(-1, descending=True).values, settings, True, rows)
        least_N1[rows], ties_N1[rows] = least, ties
    above_NV, equal_NV = p_NV > least_N1, p_NV == least_N1
    return above_NV | (equal_NV & (equal_NV.cumsum(-1) <= ties_N1))


def _head(
    best_NC: Tensor, settings: Settings, whole: bool, rows: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """From the C largest probabilities, in order: the least one kept, how many equal to it are
    kept (both [N, 1]), and whether a row needs more candidates than C ([N])."""
    pick = slice(None) if rows is None else rows
    top_k_N, top_p_N, min_p_N = (
        c[pick] for c in (settings.top_k_N, settings.top_p_N, settings.min_p_N)
    )
    width = best_NC.shape[1]
    sums_NC = best_NC.cumsum(-1)
    everything_N = torch.full_like(top_k_N, width + (0 if whole else 1))
    by_k_N = torch.where(top_k_N > 0, top_k_N.clamp(max=width), everything_N)
    total_N1 = torch.where(
        (top_k_N > 0)[:, None], sums_NC.gather(1, (by_k_N.clamp(max=width) - 1)[:, None]), 1.0
    )
    by_p_N = (sums_NC < top_p_N[:, None] * total_N1).sum(-1) + 1
    by_p_N = torch.where(top_p_N < 1, by_p_N, everything_N)
    by_min_N = (best_NC >= min_p_N[:, None] * best_NC[:, :1]).sum(-1)
    if not whole:
        by_min_N = torch.where(by_min_N == width, everything_N, by_min_N)
    count_N = torch.minimum(torch.minimum(by_k_N, by_p_N), by_min_N)
    open_N = count_N > width
    least_N1 = best_NC.gather(1, (count_N.clamp(max=width) - 1)[:, None])
    ties_N1 = count_N[:, None] - (best_NC > least_N1).sum(-1, keepdim=True)
    return least_N1, ties_N1, open_N


def draws(sampling: Sampling, seed: int, sample: int = 0) -> Callable[[Tensor], int]:
    """Draws one token after another of one sample, each from its logits [1, V]."""
    key = np.array([stream_key(seed, sample)], np.uint64)
    steps = itertools.count()
    settings: Settings | None = None

    def choose(logits_1V: Tensor) -> int:
        nonlocal settings
        settings = settings or Settings.of([sampling], logits_1V.device)
        uniform = torch.from_numpy(uniforms(key, np.array([next(steps)])))
        return int(draw(logits_1V.float(), settings, uniform.to(logits_1V.device)).token_N[0])

    return choose
