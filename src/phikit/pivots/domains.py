"""Pairs counted in the classes of the report's first preference round.

Source: Phi-4 Technical Report, Table 6 (pivotal-token DPO): unknown and safety 3,000; generic
multiple choice 132,859; mathematics 76,552; Python 16,080; C++, Go, Java, JavaScript, Rust 21,806.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from phikit.records import Pair

UNKNOWN = "unknown + safety data"
CHOICE = "generic multiple-choice Q&A"
MATH = "math data"
PYTHON = "python data"
OTHER_CODE = "cpp, go, java, js, rust data"
OTHER = "other"

REPORTED = {UNKNOWN: 3_000, CHOICE: 132_859, MATH: 76_552, PYTHON: 16_080, OTHER_CODE: 21_806}
_BY_VERIFIER = {
    "refusal": UNKNOWN, "choice": CHOICE, "math": MATH, "number": MATH, "code": PYTHON
}  # fmt: skip
_LANGUAGES = ("cpp", "c++", "go", "java", "javascript", "js", "rust")


def domain(verifier: str, kind: str, pair_kind: str = "pivot") -> str:
    """The class of a pair, by what judged it; other programming languages by the kind's name."""
    if pair_kind == "refusal":
        return UNKNOWN
    if verifier == "code" and any(word in _LANGUAGES for word in kind.lower().split("-")):
        return OTHER_CODE
    return _BY_VERIFIER.get(verifier, OTHER)


def count(pairs: Iterable[Pair]) -> dict[str, int]:
    """Pairs per class, in the report's order."""
    counts = dict.fromkeys((*REPORTED, OTHER), 0)
    for pair in pairs:
        verifier, kind = (str(pair.evidence.get(key, "")) for key in ("verifier", "domain"))
        counts[domain(verifier, kind, pair.kind)] += 1
    return counts


def table(counts: Mapping[str, int]) -> str:
    """The counts beside the report's, shares in per cent."""
    total, reported = sum(counts.values()), sum(REPORTED.values())
    lines = [f"{'':<30}{'pairs':>10}{'share':>9}{'report':>12}{'share':>9}"]
    for name, n in counts.items():
        if not n and name not in REPORTED:
            continue
        there: Any = REPORTED.get(name, 0)
        lines.append(
            f"{name:<30}{n:>10,}{_share(n, total):>9}{there:>12,}{_share(there, reported):>9}"
        )
    lines.append(f"{'total':<30}{total:>10,}{'':>9}{reported:>12,}")
    return "\n".join(lines)


def _share(n: int, total: int) -> str:
    return f"{100 * n / total:.1f} %" if total else "–"
