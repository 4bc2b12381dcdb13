from __future__ import annotations

import pytest

from phikit.train.schedules import factor


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "constant"])
def test_warms_up_and_stays_within_bounds(kind: str) -> None:
    curve = [factor(kind, s, 100, 10, 0.3, 0.1) for s in range(100)]  # type: ignore[arg-type]
    assert curve[0] == pytest.approx(1 / 11)
    assert curve[10] == 1.0
    assert curve[:11] == sorted(curve[:11])
    assert curve[10:] == sorted(curve[10:], reverse=True)
    assert min(curve[10:]) >= 0.1


def test_shapes() -> None:
    assert factor("linear", 55, 100, 10) == pytest.approx(0.5)
    assert factor("cosine", 55, 100, 10) == pytest.approx(0.5)
    assert factor("wsd", 80, 100, 10, 0.2) == 1.0
    assert factor("wsd", 90, 100, 10, 0.2) == pytest.approx(0.5)
    assert factor("linear", 99, 100, 0) == pytest.approx(0.01)
    assert factor("constant", 99, 100, 0) == 1.0
