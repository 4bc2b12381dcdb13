"""One sample at a time from a model that the scheduler does not run yet: phi-4-mini-flash.

The draws are those of the engine: they depend on the request's seed and sample number alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from phikit.engine.adjust import adjusts
from phikit.engine.base import Request, check
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


def _stream(model: Flash, request: Request) -> Iterator[int]:
    device = model.lm_head.weight.device
    sampling, ids = request.sampling, request.prompt_ids
    settings = Settings.of([sampling], device)
    key = np.array([stream_key(request.seed, request.first_sample)], np.uint64)
    state = model.new_state(1)
    logits_1V: Tensor | None = None
    for start in range(0, len(ids), _PIECE):
        piece_1L = torch.tensor([ids[start : start + _PIECE]], device=device)
        logits_1V = model.prefill(piece_1L, state, logits=start + _PIECE >= len(ids))
    for count in range(min(sampling.max_tokens, model.config.max_positions - len(ids))):
        assert logits_1V is not None  # the prompt is not empty
        uniform = torch.from_numpy(uniforms(key, np.array([count]))).to(device)
        token = int(draw(logits_1V.float(), settings, uniform).token_N[0])
        yield token
        if token in sampling.stop_ids:
            return
        logits_1V = model.step(torch.tensor([token], device=device), state)
