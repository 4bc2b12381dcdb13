"""What is made of the weights once, for as long as they do not change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")

_held: dict[tuple[int, int, Hashable], Any] | None = None


@contextmanager
def weights_held() -> Iterator[None]:
    """Within, the weights do not change: what is made of them serves every microbatch, forward and
    backward. A fused optimiser does not count as a change the version of a tensor, so it has to be
    said where one works."""
    global _held
    outer, _held = _held, {}
    try:
        yield
    finally:
        _held = outer


def held(weight: Tensor, kind: Hashable, make: Callable[[], T]) -> T:
    """What `make` makes of a weight; made once within `weights_held`. The weight keeps its memory
    there: what is gathered from other processes for a layer's turn alone does not belong here."""
    found = _held
    if found is None or not isinstance(weight, nn.Parameter):  # one made for this call alone
        return make()
    key = (weight.data_ptr(), weight._version, kind)
    if key not in found:
        found[key] = make()
    return found[key]
