"""The rows that a benchmark of the engine ends with, as JSON and as a table."""

from __future__ import annotations

from typing import Any

_COLUMNS = ("ours", "peer", "ratio", "goal", "met")


def row(
    name: str, ours: float, peer: float | None, ratio: float | None, goal: float | None
) -> dict[str, Any]:
    """A row; where there is no goal or no ratio, nothing is said of whether it is met."""
    met = None if goal is None or ratio is None else ratio >= goal
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "goal": goal, "met": met}


def table(rows: list[dict[str, Any]]) -> str:
    def shown(x: Any) -> str:
        return "-" if x is None else f"{x:.2f}" if isinstance(x, float) else str(x)

    lines = [f"{'':<66} {'ours':>8} {'peer':>8} {'ratio':>6} {'goal':>5}  met"]
    for r in rows:
        cells = [shown(r[k]) for k in _COLUMNS]
        lines.append(f"{r['name']:<66} {cells[0]:>8} {cells[1]:>8} {cells[2]:>6} {cells[3]:>5}"
                     f"  {cells[4]}")  # fmt: skip
    return "\n".join(lines)
