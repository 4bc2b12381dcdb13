"""A teacher that errs on purpose: its errors are seen by the validators, and by nobody else."""

from __future__ import annotations

from phikit.synth.slips import SlippingTeacher
from phikit.synth.teacher import Order, ProceduralTeacher
from phikit.verify.base import ByName


def test_a_slip_is_wrong_and_plausible_and_the_rest_is_untouched() -> None:
    kinds = ("comparison", "changes", "shopping", "choice", "ordering")
    orders = [Order(kind, "0/t", i, 1) for kind in kinds for i in range(60)]
    right = ProceduralTeacher().write(orders)
    erring = SlippingTeacher(ProceduralTeacher(), 0.3).write(orders)
    slipped = [c for c in erring if c and "slip" in c.meta]
    assert 0.2 < len(slipped) / len(orders) < 0.35
    verdicts = ByName().verify([(c.problem, c.response) for c in slipped])
    assert not any(v.passed for v in verdicts)
    for a, b in zip(right, erring, strict=True):
        assert a is not None and b is not None and a.question == b.question
        assert (a != b) == ("slip" in b.meta)
    assert erring == SlippingTeacher(ProceduralTeacher(), 0.3).write(orders)
