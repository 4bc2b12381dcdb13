"""Kinds of preference pairs in the shares that a round asks for.

Both rounds of phi-4 carry 1 to 5 % of pairs against hallucination and for safety beside those for
accuracy (report, 4.2 and its tables of counts).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from phikit.errors import PhikitError
from phikit.records import Pair

PairKind = Literal["pivot", "judge", "rollout", "refusal"]
DECLINED: PairKind = "refusal"


@dataclass(frozen=True)
class Mixed:
    """The pairs of a round, in the order they were given; how many of each kind, and left out."""

    pairs: list[Pair]
    counts: dict[str, int]
    unused: dict[str, int]


def kind(pair: Pair) -> str:
    """The kind of a pair; about what must be declined, "refusal", whoever preferred it."""
    verifier = pair.evidence.get("verifier")
    if pair.evidence.get("declined") or verifier == DECLINED:
        return DECLINED
    return pair.kind


def mix(pairs: Sequence[Pair], shares: Mapping[PairKind, float], seed: int) -> Mixed:
    """Pairs whose kinds make up these shares of the whole; kinds that are not named come whole.

    Of a kind with more pairs than its share, some are drawn; which ones depends on the seed and
    their ids alone. A kind with fewer, or none, comes whole, below its share: the counts say so.

    Raises:
        PhikitError: the shares leave nothing for the rest.
    """
    held = Counter(map(kind, pairs))
    if sum(shares.values()) >= 1:
        raise PhikitError(
            f"mix: the shares add up to {sum(shares.values()):g}, which leaves nothing for others",
            "name the kinds that are to be limited, with shares that add up to less than 1",
        )
    others = sum(n for name, n in held.items() if name not in shares)
    whole = others / (1 - sum(shares.values()))
    room = {name: min(held[name], round(share * whole)) for name, share in shares.items()}
    drawn = sorted(range(len(pairs)), key=lambda i: _draw(seed, pairs[i].id, i))
    kept = []
    for i in drawn:
        name = kind(pairs[i])
        if name in room:
            if not room[name]:
                continue
            room[name] -= 1
        kept.append(i)
    chosen = [pairs[i] for i in sorted(kept)]
    counts = dict.fromkeys(shares, 0) | Counter(map(kind, chosen))
    unused = {name: n - counts.get(name, 0) for name, n in held.items() if n > counts.get(name, 0)}
    return Mixed(chosen, dict(sorted(counts.items())), dict(sorted(unused.items())))


def _draw(seed: int, pair: str, place: int) -> tuple[bytes, int]:
    return hashlib.blake2b(f"{seed}/mix/{pair}".encode(), digest_size=8).digest(), place
