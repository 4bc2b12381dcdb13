from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from phikit.errors import PhikitError
from phikit.train.schedules import factor
from phikit.train.settings import TrainSettings
from phikit.train.stage_grpo import GrpoSettings


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


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("warmup", [0, 0.05, 0.5, 0.8, 0.999])
def test_whatever_is_accepted_reaches_the_peak_and_then_falls(
    kind: str, steps: int, warmup: float
) -> None:
    share = min(1.0, 1 - warmup)
    settings = TrainSettings.model_validate(
        {"schedule": kind, "warmup": warmup, "steps": steps}
        | ({"decay_share": share} if kind == "wsd" else {})
    )
    first = settings.warmup_steps(steps)
    args = (steps, first, settings.decay_share)
    curve = [factor(settings.schedule, step, *args) for step in range(steps)]
    assert max(curve) == curve[first] == 1.0
    assert curve[first:] == sorted(curve[first:], reverse=True) and min(curve) > 0


def test_a_run_too_short_for_its_schedule_is_refused() -> None:
    with pytest.raises(PhikitError, match="warmup is 10 steps, but the run has 10"):
        GrpoSettings(steps=10)
    assert GrpoSettings(steps=11).warmup_steps(11) == 10
    wsd = TrainSettings(schedule="wsd", warmup=70, decay_share=0.3)
    wsd.check_schedule(100)
    for steps, said in ((70, "warmup is 70 steps, but the run has 70"), (90, "78% .* overlap")):
        with pytest.raises(PhikitError, match=said):
            wsd.check_schedule(steps)


@pytest.mark.parametrize(
    "told",
    [
        {"decay_share": 0.3},
        {"schedule": "constant", "lr_floor": 0.1},
        {"optimiser": {"muon_lr": 0.1}},
        {"optimiser": {"betas": (0.9, 1.0)}},
        {"lr": "nan"},
        {"lr": "inf"},
        {"steps": 0},
    ],
)
def test_what_would_be_ignored_or_is_no_number_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainSettings.model_validate(told)
