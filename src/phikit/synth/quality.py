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
# where words are not parted by spaces, every character is one
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W\d_])+|\d+|[^\w\s]")
_TOGETHER = 512  # texts whose features are held at once
_LONGEST = 4000  # characters of a text that are looked at
_STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

# Legend: N texts, F features, S strengths of the ridge
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


def _products(texts: Sequence[str], weights_FS: Floats, together: int = _TOGETHER) -> Floats:
    """(N, S): features of texts times several weights."""
    parts = [features(texts[i : i + together]) @ weights_FS for i in range(0, len(texts), together)]
    return np.concatenate([np.zeros((0, weights_FS.shape[1]), np.float32), *parts])


@dataclass(frozen=True)
class Classifier:
    """weights (F,), bias, and from which predicted grade on a text counts as good."""

    weights_F: Floats
    bias: float
    threshold: float

    def scores(self, texts: Sequence[str], together: int = _TOGETHER) -> Floats:
        """Predicted grades, in the order of the texts."""
        return _products(texts, self.weights_F[:, None], together)[:, 0] + self.bias

    def save(self, path: Path) -> None:
        """Writes weights, bias and threshold as .npz."""
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
    y_N = np.asarray(grades, np.float32)
    held = np.arange(len(texts)) % 5 == 4
    ridge = _Dual(texts, y_N, held) if len(texts) <= FEATURES else _Primal(texts, y_N, held)
    kept = {s: ridge.fitted(s) for s in _STRENGTHS}
    # predictions for the part that is held out, of all strengths in one pass
    some = [text for text, out in zip(texts, held, strict=True) if out]
    weights_FS = np.stack([weights_F for weights_F, _ in kept.values()], axis=1)
    guesses = _products(some, weights_FS) + np.array([bias for _, bias in kept.values()])
    errors = ((guesses - y_N[held, None]) ** 2).mean(0)
    best = int(np.argmin(errors))
    guessed = np.sort(guesses[:, best])[::-1]
    count = int((y_N[held] >= good).sum())
    threshold = float(guessed[min(max(count, 1), len(guessed)) - 1])
    weights_F, bias = ridge.fitted(_STRENGTHS[best], whole=True)
    return Classifier(weights_F, bias, threshold)


class _Dual:
    """Ridge regression of few texts: with as many unknowns as there are."""

    def __init__(self, texts: Sequence[str], y_N: Floats, held: NDArray[np.bool_]) -> None:
        self.x_NF, self.y_N, self.held = features(texts), y_N, held

    def fitted(self, strength: float, whole: bool = False) -> tuple[Floats, float]:
        """weights (F,) and bias, learnt from all texts or from those that are not held out."""
        if whole:
            return _ridge(self.x_NF, self.y_N, strength)
        return _ridge(self.x_NF[~self.held], self.y_N[~self.held], strength)


class _Primal:
    """The same of any number of texts: of their features no more is kept than sums of products."""

    def __init__(self, texts: Sequence[str], y_N: Floats, held: NDArray[np.bool_]) -> None:
        self.sums = [_Sums(), _Sums()]  # of what is not held out, and of what is
        for out, sums in enumerate(self.sums):
            at = np.flatnonzero(held == out)
            for begin in range(0, len(at), _TOGETHER):
                these = at[begin : begin + _TOGETHER].tolist()
                sums.add(features([texts[i] for i in these]), y_N[these])

    def fitted(self, strength: float, whole: bool = False) -> tuple[Floats, float]:
        """As of `_Dual`."""
        parts = self.sums if whole else self.sums[:1]
        count = sum(s.count for s in parts)
        mean_F = np.sum([s.x_F for s in parts], axis=0) / count
        mean = float(sum(s.y for s in parts) / count)
        gram_FF = sum(s.xx_FF for s in parts) - count * np.outer(mean_F, mean_F)
        gram_FF[np.diag_indices(FEATURES)] += strength
        moment_F = np.sum([s.xy_F for s in parts], axis=0) - count * mean * mean_F
        weights_F = np.linalg.solve(gram_FF, moment_F)
        return weights_F.astype(np.float32), mean - float(mean_F @ weights_F)


class _Sums:
    def __init__(self) -> None:
        self.count, self.y = 0, 0.0
        self.x_F, self.xy_F = np.zeros(FEATURES), np.zeros(FEATURES)
        self.xx_FF = np.zeros((FEATURES, FEATURES), np.float32)

    def add(self, x_NF: Floats, y_N: Floats) -> None:
        self.count += len(y_N)
        self.y += float(y_N.sum())
        self.x_F += x_NF.sum(0)
        self.xy_F += x_NF.T @ y_N
        self.xx_FF += x_NF.T @ x_NF


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
    """How well the classifier tells texts that were graded `good` or better from the others."""
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
