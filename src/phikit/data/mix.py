"""Which documents are trained on, how often and in which order.

The mixture gives every source class a share of a token budget (technical report, Table 5). A
class with too few tokens is repeated: its documents are drawn without replacement until it is used
up, then reshuffled for the next epoch. The draws of all classes are then merged evenly, so that any
stretch of the training data has the mixture's shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phikit.errors import PhikitError

# Technical report, Table 5.
PHI4_WEIGHTS = {
    "web": 0.15,
    "web_rewrites": 0.15,
    "synthetic": 0.40,
    "code": 0.20,
    "acquired": 0.10,
}
LONG = "long"  # the share of naturally long documents in midtraining
_SHUFFLE = 0x6D6978  # the random stream of document orders


@dataclass(frozen=True)
class Share:
    """A part of the mixture: `documents` may be drawn for it, up to about `tokens` tokens.

    `documents` may name one more than once, which draws it that often per epoch.
    """

    name: str
    documents: NDArray[np.int64]
    tokens: float


@dataclass(frozen=True)
class Mixture:
    """The documents in training order (`order`), each with the share it was drawn for."""

    order: NDArray[np.int64]
    share: NDArray[np.int64]
    stats: dict[str, dict[str, float]]


def normalised(
    weights: Mapping[str, float], present: Mapping[str, int], unit: str = "tokens"
) -> dict[str, float]:
    """Weights that sum to 1, of the classes that have one.

    Args:
        weights: weight per source class; 0 leaves the class out.
        present: tokens (or whatever `unit` says) per source class in the data.

    Raises:
        PhikitError: a class has a weight but no data, or data but no weight; nothing is ever
            left out or made up for in silence.
    """
    missing = sorted(s for s, w in weights.items() if w > 0 and not present.get(s))
    if missing:
        raise PhikitError(
            f"the mixture gives weight to {', '.join(missing)}, but there is no such data; there "
            "is: "
            + (", ".join(f"{s} ({n:,} {unit})" for s, n in sorted(present.items())) or "none"),
            "add a stage that makes it, or set its weight to 0: the others then share its part",
        )
    unweighted = sorted(s for s, n in present.items() if n and s not in weights)
    if unweighted:
        raise PhikitError(
            f"there is data of class {', '.join(unweighted)}, which the mixture does not name",
            "give it a weight, 0 to leave it out",
        )
    total = sum(weights.values())
    if not (0 < total < math.inf) or min(weights.values()) < 0:
        raise PhikitError(
            f"the mixture's weights are {dict(weights)}: they must be positive numbers"
        )
    return {s: w / total for s, w in sorted(weights.items()) if w > 0}


def mix(lengths: NDArray[np.int64], shares: list[Share], seed: int) -> Mixture:
    """Draws documents for every share and merges them evenly.

    Args:
        lengths: tokens of each document.
        seed: (seed, number of the share, epoch) decides the order of each epoch.
    """
    drawn: list[NDArray[np.int64]] = []
    places: list[NDArray[np.float64]] = []
    stats: dict[str, dict[str, float]] = {}
    for number, share in enumerate(shares):
        documents = _draw(lengths, share, [seed, _SHUFFLE, number])
        ends = np.cumsum(lengths[documents])
        used = int(ends[-1]) if len(ends) else 0
        drawn.append(documents)
        places.append((ends - lengths[documents] / 2) / max(used, 1))
        unique = int(lengths[np.unique(share.documents)].sum())
        stats[share.name] = {
            "documents": len(np.unique(share.documents)),
            "unique_tokens": unique,
            "tokens": used,
            "epochs": round(used / max(unique, 1), 2),
        }
    total = max(sum(s["tokens"] for s in stats.values()), 1)
    for row in stats.values():
        row["share"] = round(row["tokens"] / total, 4)
    order = np.argsort(np.concatenate(places), kind="stable")
    share_of = np.repeat(np.arange(len(drawn)), [len(d) for d in drawn])
    return Mixture(np.concatenate(drawn)[order], share_of[order], stats)


def _draw(lengths: NDArray[np.int64], share: Share, stream: list[int]) -> NDArray[np.int64]:
    """Epoch after epoch in new orders, until the tokens are reached as nearly as can be."""
    epochs: list[NDArray[np.int64]] = []
    left = share.tokens
    while left > 0 and len(share.documents):
        rng = np.random.default_rng([*stream, len(epochs)])
        epoch = rng.permutation(share.documents)
        ends = np.cumsum(lengths[epoch])
        # a document is in if the greater part of it is within what is left
        epoch = epoch[: int(np.searchsorted(ends - lengths[epoch] / 2, left))]
        if not len(epoch):
            break
        epochs.append(epoch)
        left -= float(lengths[epoch].sum())
        if len(epoch) < len(share.documents):
            break
    return np.concatenate([np.zeros(0, np.int64), *epochs])
