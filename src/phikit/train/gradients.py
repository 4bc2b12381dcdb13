"""How a step's gradients are added up where only one lane of one process computes them.

A weight's gradient is as large as the weight, and autograd writes one for every microbatch, scales
it by what comes from the loss and adds it to the sum: five passes over memory where one does.
Within `added_up` the products add to the sum themselves, and losses that compute their gradients
along with their value do so for the slope that will come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Scope:
    slope: float
    in_place: bool


_scope = _Scope(1.0, False)


@contextmanager
def added_up(slope: float, in_place: bool) -> Iterator[None]:
    """Within, a loss is differentiated with this slope.

    Args:
        in_place: `.grad` is where all gradients go: none is asked for by itself, no other thread or
            process adds to it, and nothing hooks into it.
    """
    global _scope
    outer, _scope = _scope, _Scope(slope, in_place)
    try:
        yield
    finally:
        _scope = outer


def slope_to_come() -> float:
    """What a loss will be differentiated with; 1 where that is not known."""
    return _scope.slope


def place_of_sum(weight: Tensor) -> tuple[Tensor, bool] | None:
    """`.grad`, and whether there is something in it to add to; None where a gradient has to be
    returned instead. In the backward pass, once for each gradient."""
    if not (_scope.in_place and isinstance(weight, nn.Parameter) and weight.dtype == torch.float32):
        return None
    begun = weight.grad is not None
    if weight.grad is None:
        weight.grad = torch.empty_like(weight)
    return weight.grad, begun


def gradient(weight: Tensor, write: Callable[[Tensor, bool], None]) -> Tensor | None:
    """A weight's gradient, for the backward pass to return.

    Args:
        write: writes it into a tensor of the weight's shape in float32, or adds it to that.

    Returns:
        None if it went into `.grad`.
    """
    if (place := place_of_sum(weight)) is not None:
        write(*place)
        return None
    made = torch.empty_like(weight, dtype=torch.float32)
    write(made, False)
    return made.to(weight.dtype)
