"""One picture of a run, for a README: accuracy per stage, and one solution's pivotal tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phikit.files import explain_os_errors
from phikit.reporting.evaluations import Evaluations
from phikit.reporting.searches import Solution, Token
from phikit.reporting.words import percent, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, RULE = "#1b1f24", "#57606a", "#d9dce1"
UP, DOWN = "#0062ac", "#c84e00"
COLUMNS = 64  # characters of a line of the token strip


def draw(evaluations: Evaluations, solution: Solution | None, path: Path) -> None:
    """Writes the picture; the format is the path's ending. The same run gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(evaluations.chain)
    lower = 3.1 if solution else 0.0
    height = 0.9 + 0.34 * rows + lower
    with matplotlib.rc_context({"svg.hashsalt": "phikit", "font.size": 10}):
        figure = Figure(figsize=(9, height), dpi=160, facecolor="white")
        FigureCanvasAgg(figure)
        parts = figure.subplots(
            3 if solution else 1,
            1,
            gridspec_kw={"height_ratios": [0.34 * rows, 1.2, 1.0]} if solution else None,
            squeeze=False,
        )[:, 0]
        figure.subplots_adjust(left=0.14, right=0.89, top=1 - 0.5 / height, bottom=0.3 / height,
                               hspace=0.5)  # fmt: skip
        _accuracies(parts[0], evaluations)
        if solution:
            _curve(parts[1], solution)
            _strip(parts[2], solution)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with explain_os_errors(path, "writing"):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, metadata=metadata)


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, colors=SOFT, labelsize=9)


def _accuracies(axes: Axes, evaluations: Evaluations) -> None:
    names = [e.model.name for e in evaluations.chain]
    for y, e in enumerate(evaluations.chain):
        a = e.accuracy
        axes.plot([100 * a.low, 100 * a.high], [y, y], color=UP, alpha=0.4, linewidth=4,
                  solid_capstyle="round")  # fmt: skip
        axes.plot(100 * a.value, y, "o", color=UP, markersize=7)
        axes.text(1.02, y, percent(a.value), transform=axes.get_yaxis_transform(), va="center",
                  color=INK, weight="bold")  # fmt: skip
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.grid(True, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    title = "Right answers to held-out problems after every stage (%, 95 % intervals)"
    headline = evaluations.headline
    if headline and headline.difference:
        d = headline.difference
        title += f"\nsince {headline.before}: {points(d.value)} points ({d.finding})"
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, weight="bold")
    _bare(axes)


def _curve(axes: Axes, solution: Solution) -> None:
    xs = [p.position for p in solution.points]
    lows, highs = [p.low for p in solution.points], [p.high for p in solution.points]
    axes.fill_between(xs, lows, highs, color=UP, alpha=0.15, linewidth=0)
    axes.plot(xs, [p.p for p in solution.points], color=UP, linewidth=1.6)
    for t in solution.pivots:
        color = UP if (t.change or 0) > 0 else DOWN
        axes.axvspan(t.number, t.number + 1, color=color, alpha=0.3, linewidth=0)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, len(solution.tokens))
    axes.set_yticks([0, 0.5, 1], ["0", "p(success)", "1"])
    title = "Pivotal tokens: how each token of a solution changes the chance that it ends right"
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, weight="bold")
    _bare(axes)


def _strip(axes: Axes, solution: Solution) -> None:
    """The solution in a fixed-width face, every token on its colour."""
    axes.set_axis_off()
    lines = _lines(solution.tokens)
    height = max(3, len(lines))
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(height, 0)
    for y, line in enumerate(lines):
        x = 0
        for token, text in line:
            if token.strength:
                color = UP if token.direction == "up" else DOWN
                axes.axvspan(
                    x, x + len(text), 1 - (y + 0.95) / height, 1 - (y + 0.05) / height, color=color,
                    alpha=0.1 + 0.09 * token.strength, linewidth=0,
                )  # fmt: skip
            for i, character in enumerate(text):
                axes.text(x + i + 0.5, y + 0.5, character, ha="center", va="center", color=INK,
                          family="monospace", fontsize=10, parse_math=False,
                          weight="bold" if token.pivot else "normal")  # fmt: skip
            x += len(text)


def _lines(tokens: tuple[Token, ...], most: int = 6) -> list[list[tuple[Token, str]]]:
    """Tokens broken into lines at newlines and at the width; at most so many lines."""
    lines: list[list[tuple[Token, str]]] = [[]]
    for token in tokens:
        text = token.text.replace("\n", "↵").replace("\t", " ")
        if text.startswith("<|") and text.endswith("|>"):
            continue
        width = sum(len(t) for _, t in lines[-1])
        if width + len(text) > COLUMNS and lines[-1]:
            lines.append([])
        lines[-1].append((token, text[:COLUMNS]))
        if "\n" in token.text:
            lines.append([])
    return [line for line in lines if line][:most]
