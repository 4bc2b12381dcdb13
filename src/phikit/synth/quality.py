"""A small classifier of quality: it learns a teacher's grades from hashed words, and costs nothing.

Phi-4's web filter is "small non-LLM classifiers trained on about 10^6 LLM annotations" (report,
section 2.2). Here: ridge regression of a grade on the hashed words and word pairs of a text, in
closed form, with its strength chosen on a part of what it learns from.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phikit.errors import PhikitError

FEATURES = 1 << 13
_WORD = re.compile(r"[A-Za-z]+|\d+|[^\w\s]")
_LONGEST = 4000  # characters of a text that are looked at
_STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

# Legend: N texts, F features
Floats = NDArray[np.float32]


def features(texts: Sequence[str]) -> Floats:
    """(N, F): square roots of the counts of words and word pairs in hashed places, of length 1."""
    x_NF = np.zeros((len(texts), FEATURES), np.float32)
    for row, text in enumerate(texts):
        words = [w.lower() if w[0].isalpha() else w[0] for w in _WORD.findall(text[:_LONGEST])]
        pairs = (f"{a} {b}" for a, b in itertools.pairwise(words))
        places = [zlib.crc32(w.encode()) % FEATURES for w in (*words, *pairs)]
        if places:
            found, counts = np.unique(places, return_counts=True)
            x_NF[row, found] = np.sqrt(counts)
            x_NF[row] /= np.linalg.norm(x_NF[row])
    return x_NF


@dataclass(frozen=True)
class Classifier:
    """weights (F,), bias, and from which predicted grade on a text counts as good."""

    weights_F: Floats
    bias: float
    threshold: float

    def scores(self, texts: Sequence[str], together: int = 512) -> Floats:
        """Predicted grades, in the order of the texts."""
        parts = [
            features(texts[i : i + together]) @ self.weights_F + self.bias
            for i in range(0, len(texts), together)
        ]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def save(self, path: Path) -> None:
        np.savez(path, weights=self.weights_F, numbers=np.array([self.bias, self.threshold]))

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """
        Raises:
            PhikitError: it is not there.
        """
        if not path.exists():
            raise PhikitError(f"{path}: no classifier is here")
        with np.load(path) as kept:  # arrays alone: objects are refused
            bias, threshold = kept["numbers"].tolist()
            return cls(kept["weights"], bias, threshold)


def fit(texts: Sequence[str], grades: Sequence[float], good: float) -> Classifier:
    """A classifier of `grades`; a grade of `good` or more is good.

    The strength of the ridge is the one that predicts every fifth text best from the others; the
    threshold is then the one at which as many of these are called good as are good, so that
    precision and recall are in balance.

    Raises:
        PhikitError: there are fewer than ten texts.
    """
    if len(texts) < 10:
        raise PhikitError(
            f"{len(texts)} annotated texts are too few to learn from", "annotate more"
        )
    x_NF, y_N = features(texts), np.asarray(grades, np.float32)
    held = np.arange(len(texts)) % 5 == 4
    kept = {s: _ridge(x_NF[~held], y_N[~held], s) for s in _STRENGTHS}
    errors = {
        s: float(np.mean((x_NF[held] @ w + b - y_N[held]) ** 2)) for s, (w, b) in kept.items()
    }
    best = min(errors, key=lambda s: (errors[s], s))
    weights_F, bias = kept[best]
    guessed = np.sort(x_NF[held] @ weights_F + bias)[::-1]
    count = int((y_N[held] >= good).sum())
    threshold = float(guessed[min(max(count, 1), len(guessed)) - 1])
    weights_F, bias = _ridge(x_NF, y_N, best)
    return Classifier(weights_F, bias, threshold)


def _ridge(x_NF: Floats, y_N: Floats, strength: float) -> tuple[Floats, float]:
    """Least squares with `strength` · ‖w‖², in the dual: as many unknowns as texts."""
    mean = float(y_N.mean())
    centre_F = x_NF.mean(0)
    x_NF = x_NF - centre_F
    gram_NN = x_NF @ x_NF.T
    gram_NN[np.diag_indices(len(y_N))] += strength
    weights_F = x_NF.T @ np.linalg.solve(gram_NN, y_N - mean)
    return weights_F.astype(np.float32), mean - float(centre_F @ weights_F)


@dataclass(frozen=True)
class Measured:
    """How a classifier does on texts that it did not learn from.

    Attributes:
        base: the share that is good: the precision of calling all good.
        rank: Spearman's correlation of predicted and given grades.
    """

    texts: int
    base: float
    precision: float
    recall: float
    rank: float


def measure(
    classifier: Classifier, texts: Sequence[str], grades: Sequence[float], good: float
) -> Measured:
    guessed, given = classifier.scores(texts), np.asarray(grades)
    called, are = guessed >= classifier.threshold, given >= good
    both = int((called & are).sum())
    return Measured(
        len(texts),
        float(are.mean()) if len(texts) else 0.0,
        both / max(1, int(called.sum())),
        both / max(1, int(are.sum())),
        spearman(guessed, given),
    )


def spearman(a: NDArray[np.float32] | Sequence[float], b: NDArray | Sequence[float]) -> float:
    """Correlation of ranks, ties at their mean rank; 0 where one of them does not vary."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks if len(r)) or not len(ranks[0]):
        return 0.0
    a_N, b_N = (r - r.mean() for r in ranks)
    return float(a_N @ b_N / np.sqrt((a_N @ a_N) * (b_N @ b_N)))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]
