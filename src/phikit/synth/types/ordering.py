"""Ordering and deduction: the order of several people from shuffled comparisons."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import NamedTuple

from phikit.synth.exercise import DatasetType, Exercise, decline
from phikit.synth.words import capital, people


class _Scale(NamedTuple):
    more: str
    less: str
    most: str
    least: str
    quality: str


_SCALES = (
    _Scale("taller", "shorter", "tallest", "shortest", "height"),
    _Scale("older", "younger", "oldest", "youngest", "age"),
    _Scale("faster", "slower", "fastest", "slowest", "speed"),
    _Scale("heavier", "lighter", "heaviest", "lightest", "weight"),
    _Scale("richer", "poorer", "richest", "poorest", "wealth"),
    _Scale("stronger", "weaker", "strongest", "weakest", "strength"),
)
_PLACES = ("first", "second", "third", "fourth", "fifth")


def _clues(rng: Random, order: list[str], scale: _Scale) -> tuple[list[str], list[tuple[str, str]]]:
    """Neighbours compared, in shuffled order; half of the comparisons turned round."""
    pairs = list(pairwise(order))
    rng.shuffle(pairs)
    texts = []
    for high, low in pairs:
        if rng.random() < 0.5:
            texts.append(f"{high} is {scale.more} than {low}.")
        else:
            texts.append(f"{low} is {scale.less} than {high}.")
    return texts, pairs


def _thought(order: list[str], pairs: list[tuple[str, str]], scale: _Scale) -> list[str]:
    """Each clue as "A > B", then the chain from its only possible start, link by link."""
    lines = [f"{high} > {low}" for high, low in pairs]
    lows = {low for _, low in pairs}
    start = next(name for name in order if name not in lows)
    lines.append(f"Nobody is {scale.more} than {start}, so {start} is {scale.most}.")
    below, chain = dict(pairs), [start]
    while chain[-1] in below:
        chain.append(below[chain[-1]])
        lines.append(f"{chain[-2]} > {chain[-1]}: {' > '.join(chain)}")
    return lines


def write(rng: Random, difficulty: int) -> Exercise:
    count = (3, 3, 4, 5, 6)[difficulty - 1]
    order = [p.name for p in people(rng, count)]
    scale = rng.choice(_SCALES)
    texts, pairs = _clues(rng, order, scale)
    line = f"From {scale.most} to {scale.least}: {', '.join(order)}."
    if rng.random() < 0.2:
        return Exercise(
            question=" ".join((*texts, f"List them from {scale.most} to {scale.least}.")),
            steps=(line,),
            answer=", ".join(order),
            verifier="exact",
            thought=tuple(_thought(order, pairs, scale)),
            wrong=tuple(", ".join(rng.sample(order, count)) for _ in range(3)),
        )
    place = rng.randrange(count)
    if place == 0:
        ask, closing = f"Who is the {scale.most}?", f"{order[place]} is the {scale.most}."
    elif place == count - 1:
        ask, closing = f"Who is the {scale.least}?", f"{order[place]} is the {scale.least}."
    else:
        where = _PLACES[place]
        ask = f"Who is the {where} {scale.most}?"
        closing = f"{order[place]} is the {where} {scale.most}."
    return Exercise(
        question=" ".join((*texts, ask)),
        steps=(line, closing),
        answer=order[place],
        verifier="exact",
        thought=(*_thought(order, pairs, scale), closing),
        wrong=tuple(name for name in order if name != order[place])[:3],
    )


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    count = (3, 3, 4, 5, 6)[difficulty - 1]
    order = [p.name for p in people(rng, count)]
    scale, other = rng.sample(_SCALES, 2)
    texts, pairs = _clues(rng, order, scale)
    if rng.random() < 0.5:
        ask = f"Who is the {rng.choice((other.most, other.least))}?"
        return decline(" ".join((*texts, ask)), f"the {other.quality} of anyone")
    end = rng.randrange(2)
    gap = (order[0], order[1]) if end == 0 else (order[-2], order[-1])
    texts = [t for t, pair in zip(texts, pairs, strict=True) if pair != gap]
    ask = f"Who is {scale.more}, {gap[0]} or {gap[1]}?"
    return decline(capital(" ".join((*texts, ask))), f"how {gap[0]} and {gap[1]} compare")


TYPE = DatasetType(
    name="ordering",
    skill="joining comparisons given in any order into one chain",
    write=write,
    unanswerable=unanswerable,
    dial="3, 3, 4, 5, 6 people",
)
