"""What is shown while a stage works: one line that fits, and plain lines where nothing is drawn."""

import io

import pytest

from phikit.progress import Meter, PlainDisplay, duration, figures, for_terminal, quantity


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def meter() -> Meter:
    clock = Clock()
    shown = Meter(" 7/24 sft", clock)
    clock.now += 2  # a start-up that must not slow the rate down
    shown.update(100, 600, loss=0.9)
    clock.now += 10
    shown.update(200, 600, loss=0.4123, tokens_per_s=28_120.0)
    return shown


def test_a_wide_line_has_everything() -> None:
    line = meter().line(120)
    assert line.split("  ")[0] == " 7/24 sft"
    for part in ("200/600", " 33%", "loss 0.412", "tokens/s 28.1k", "12 s elapsed", "40 s left"):
        assert part in line


@pytest.mark.parametrize("width", range(20, 130, 7))
def test_a_line_never_exceeds_its_width(width: int) -> None:
    assert len(meter().line(width)) <= width


def test_a_narrow_line_keeps_share_loss_and_time_left() -> None:
    line = meter().line(60)
    assert "33%" in line and "loss 0.412" in line and "40 s left" in line
    assert "elapsed" not in line


def test_a_total_of_zero_divides_nothing() -> None:
    shown = Meter("x")
    shown.update(0, 0)
    assert shown.line(80).startswith("x")


def test_plain_lines_are_sparse() -> None:
    stream = io.StringIO()
    display = for_terminal(stream)
    assert isinstance(display, PlainDisplay)
    with display.stage("1/2 data") as progress:
        for i in range(1000):
            progress.update(i, 1000)
    assert stream.getvalue() == "▸ 1/2 data\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.26, "8.3 s"), (59.4, "59 s"), (59.7, "1:00"), (125, "2:05"),
     (3725, "1:02:05")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(412, "412"), (9999, "9999"), (1510.2, "1510"), (0.08312, "0.0831"), (28_120.0, "28.1k"),
     (5_200_000, "5.2M"), (3.0, "3"), ("ok", "ok"), (True, "yes"), (2.5e13, "25.0T"),
     (1e16, "1.00e+16"), (-0.5, "-0.5")],
)  # fmt: skip
def test_quantities(value: float | str, text: str) -> None:
    assert quantity(value) == text


def test_figures_take_what_is_plain_and_fits() -> None:
    summary = {"loss": 0.51234, "by_kind": {"a": 1}, "kept_pairs": 12, "rest": 5}
    assert figures(summary, 80) == "loss 0.512  kept pairs 12  rest 5"
    assert figures(summary, 26) == "loss 0.512  kept pairs 12"
