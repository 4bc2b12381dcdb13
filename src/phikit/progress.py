"""What a person sees while a run works: one live line per stage, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from phikit.stage import Progress

if TYPE_CHECKING:
    from rich.console import Console

#: Seconds between two lines about the same stage when the output is no terminal.
PLAIN_EVERY = 10.0


class Display(Protocol):
    """Shows a run: `say` prints a line that stays, `stage` gives a stage its progress."""

    @property
    def width(self) -> int:
        """Columns that a line may take."""
        ...

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        ...

    def stage(self, label: str) -> AbstractContextManager[Progress]:
        """Shows a stage's progress under this label while the context is open."""
        ...


class Meter:
    """Counts for one stage, and puts them into one line of any width."""

    def __init__(self, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.label = label
        self._clock = clock
        self._begun = clock()
        self._first: tuple[float, float] | None = None  # (time, done) at the first update
        self._now = self._begun
        self._done = self._total = 0.0
        self._fields: dict[str, float | str] = {}

    def update(self, done: float, total: float, **fields: float | str) -> None:
        """Takes the newest counts, of which the next line speaks."""
        self._now = self._clock()
        # the first update may follow a long start, or go on from a killed run
        if self._first is None:
            self._first = (self._now, done)
        self._done, self._total, self._fields = done, total, fields

    def line(self, width: int) -> str:
        """The most telling parts that fit: place, share, time left, fields, rate, time elapsed."""
        if self._first is None:
            parts = [f"{duration(self._clock() - self._begun)} elapsed"]
            return _fit(self.label, parts, width)
        share = f"{self._done / self._total:4.0%}" if self._total else ""
        count = f"{quantity(self._done)}/{quantity(self._total)}"
        fields = [f"{name.replace('_per_s', '/s')} {quantity(v)}"
                  for name, v in self._fields.items()]  # fmt: skip
        per_second = self._rate()
        left = f"{duration((self._total - self._done) / per_second)} left" if per_second else ""
        rate = "" if any("/s" in f for f in fields) or not per_second else (
            f"{quantity(per_second)}/s"
        )  # fmt: skip
        elapsed = f"{duration(self._clock() - self._begun)} elapsed"
        # shown in this order; kept, when the line is too narrow, by these ranks
        ranked = [(3, count), (0, share), *((2 + i, f) for i, f in enumerate(fields)), (4, rate),
                  (5, elapsed), (1, left)]  # fmt: skip
        return _fit_ranked(self.label, [(r, text) for r, text in ranked if text], width)

    def _rate(self) -> float:
        assert self._first is not None
        since, first = self._first
        passed = self._now - since
        return (self._done - first) / passed if passed > 0 else 0.0


def _fit(label: str, parts: list[str], width: int) -> str:
    return _fit_ranked(label, list(enumerate(parts)), width)


def _fit_ranked(label: str, ranked: list[tuple[int, str]], width: int) -> str:
    """Joins label and parts, leaving out those of the highest rank until the line fits."""
    while True:
        text = "  ".join([f"{label:<18}", *(part for _, part in ranked)])
        if len(text) <= width or not ranked:
            return text[:width]
        ranked.remove(max(ranked, key=lambda r: r[0]))


class PlainDisplay:
    """For logs and pipes: a line when a stage starts, one every ten seconds, one at its end."""

    width = 118

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    @contextmanager
    def stage(self, label: str) -> Iterator[Progress]:
        self.say(f"▸ {label}")
        yield _Lines(Meter(label), self.say)


class _Lines:
    """A `Progress` that says its line when it has been silent for a while."""

    def __init__(self, meter: Meter, say: Callable[[str], None]) -> None:
        self._meter, self._say = meter, say
        self._last = time.monotonic()

    def update(self, done: float, total: float, **fields: float | str) -> None:
        self._meter.update(done, total, **fields)
        if time.monotonic() - self._last >= PLAIN_EVERY:
            self._last = time.monotonic()
            self._say("  " + self._meter.line(PlainDisplay.width - 2))


class LiveDisplay:
    """For terminals: the working stage's line is redrawn in place; finished lines stay above."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def width(self) -> int:
        # one column less: a full last column makes some terminals wrap
        return self._console.width - 1

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, label: str) -> Iterator[Progress]:
        from rich.live import Live
        from rich.text import Text

        meter = Meter(label)

        def draw() -> Text:
            return Text("▸ " + meter.line(self.width - 2), no_wrap=True, style="cyan")

        with Live(get_renderable=draw, console=self._console, refresh_per_second=5, transient=True):
            yield meter


def for_terminal(stream: TextIO | None = None) -> Display:
    """The live display on a terminal, the plain one anywhere else."""
    stream = stream or sys.stdout
    if not stream.isatty():
        return PlainDisplay(stream)
    from rich.console import Console

    return LiveDisplay(Console(file=stream))


# --- Words for figures ---------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """8.3 s, 2:05, 1:02:05, 2.5 days."""
    if seconds >= 100 * 3600:
        return f"{seconds / 86400:,.1f} days"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def quantity(value: float | str) -> str:
    """A figure in at most about six characters: 412, 0.0831, 28.1k, 5.2M."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    size = abs(value)
    if size >= 1e15:
        return f"{value:.2e}"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.1f}{unit}"
    if size >= 100 or float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.3g}"


def figures(summary: Mapping[str, Any], width: int) -> str:
    """The plain numbers and words of a stage's summary, as many as fit."""
    text = ""
    for key, value in summary.items():
        if not isinstance(value, int | float | str) or (isinstance(value, str) and len(value) > 24):
            continue
        part = f"{key.replace('_', ' ')} {quantity(value)}"
        if len(text) + len(part) + 2 > width:
            break
        text += ("  " if text else "") + part
    return text
