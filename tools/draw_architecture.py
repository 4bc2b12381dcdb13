"""Draws docs/architecture.md from the real import graph: `python tools/draw_architecture.py`.

With --check it only says whether the page is up to date (status 1 when it is not).
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

from phikit.imports import Sources

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by tools/draw_architecture.py -->\n", "<!-- end of the drawing -->\n"


def part(module: str) -> str:
    """The folder or file directly under phikit that a module belongs to."""
    return ".".join(module.split(".")[:2])


def edges(sources: Sources) -> dict[str, set[str]]:
    """part → the parts that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in sources.names():
        here = part(name)
        found[here] |= {part(target) for target in sources.module(name).internal}
    return {
        here: {there for there in targets if there != here and "." in there}
        for here, targets in sorted(found.items())
        if "." in here and not here.endswith("__main__")
    }


def needed_arrows(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The edges that no longer path implies: the picture's arrows."""
    below: dict[str, set[str]] = {}

    def reach(node: str) -> set[str]:
        if node not in below:
            below[node] = set().union(*({n} | reach(n) for n in graph.get(node, ())), set())
        return below[node]

    return sorted(
        (here, there)
        for here, targets in graph.items()
        for there in targets
        if not any(there in reach(other) for other in targets - {there})
    )


def layers() -> list[list[str]]:
    """The layers that the import rule in pyproject.toml states, the top one first."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    stated = rules["contracts"][0]["layers"]
    return [[name.strip(" ()") for name in layer.split("|")] for layer in stated]


def purpose(sources: Sources, name: str) -> str:
    """The first sentence of a part's docstring."""
    text = ast.get_docstring(ast.parse(sources.module(name).path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def draw() -> str:
    """The drawn part of the page."""
    sources = Sources(ROOT / "src" / "phikit")
    graph = edges(sources)
    short = {name: name.partition(".")[2] for name in graph}
    text = [BEGIN, "```mermaid", "graph TD"]
    text += [f"  {short[here]} --> {short[there]}" for here, there in needed_arrows(graph)]
    text += ["```", "", "| part | what it is | imports |", "|---|---|---|"]
    for layer in layers():
        for name in layer:
            if name in graph:
                shown = ", ".join(f"`{short[n]}`" for n in sorted(graph[name]))
                text.append(f"| `{short[name]}` | {purpose(sources, name)} | {shown} |")
    return "\n".join([*text, END])


def page() -> str:
    """The whole page: what people wrote around the drawing stays."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + draw() + after


def main() -> int:
    wanted = page()
    if "--check" in sys.argv:
        if PAGE.read_text() == wanted:
            return 0
        print(f"{PAGE} is out of date: run `make docs`")
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
