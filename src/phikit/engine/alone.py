"""One sample at a time, where the scheduler does not run the model: phi-4-mini-flash.

The draws are those of the engine: they depend on the request's seed and sample number alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from phikit.engine.adjust import adjusts
from phikit.engine.base import Request, Sampling, check
from phikit.engine.sampling import Settings, draw, stream_key, uniforms
from phikit.errors import PhikitError
from phikit.models.flash.model import Flash

_PIECE = 2048  # prompt tokens computed at once


def stream(model: Flash, request: Request) -> Iterator[int]:
    """Yields the tokens of one sample as they are drawn, an end token included.

    Raises:
        PhikitError: the prompt is wrong for the model, more than one sample is asked for, or the
            request asks for penalties, biases, stop texts or a constraint.
    """
    config, sampling = model.config, request.sampling
    check(request, config.vocab_size, config.max_positions)
    if request.n != 1:
        raise PhikitError(f"only one sample can be streamed; n is {request.n}")
    if adjusts(sampling) or sampling.stop or sampling.constraint:
        raise PhikitError(
            "phi-4-mini-flash draws without penalties, biases, stop texts and constraints here",
            "leave them out",
        )
    return _stream(model, request)


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


def _stream(model: Flash, request: Request) -> Iterator[int]:
    device = model.lm_head.weight.device
    sampling, ids = request.sampling, request.prompt_ids
    choose = draws(sampling, request.seed, request.first_sample)
    state = model.new_state(1)
    logits_1V: Tensor | None = None
    for start in range(0, len(ids), _PIECE):
        piece_1L = torch.tensor([ids[start : start + _PIECE]], device=device)
        logits_1V = model.prefill(piece_1L, state, logits=start + _PIECE >= len(ids))
    for _ in range(min(sampling.max_tokens, model.config.max_positions - len(ids))):
        assert logits_1V is not None  # the prompt is not empty
        token = choose(logits_1V)
        yield token
        if token in sampling.stop_ids:
            return
        logits_1V = model.step(torch.tensor([token], device=device), state)
