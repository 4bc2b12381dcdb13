"""Multiple choice: a problem of another type with four options, three of them plausible slips."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from phikit.synth.exercise import DatasetType, Exercise
from phikit.synth.types import (
    calendar,
    changes,
    comparison,
    equations,
    groups,
    ordering,
    percent,
    shopping,
    units,
)

_MODULES = (
    changes,
    groups,
    equations,
    comparison,
    ordering,
    units,
    shopping,
    percent,
    calendar,
)
_LETTERS = "ABCD"


def write(rng: Random, difficulty: int) -> Exercise:
    exercise = rng.choice(_MODULES).TYPE.write(rng, difficulty)
    options = [*dict.fromkeys((exercise.answer, *exercise.wrong))][: len(_LETTERS)]
    rng.shuffle(options)
    letter = _LETTERS[options.index(exercise.answer)]
    shown = "\n".join(f"{a}) {b}" for a, b in zip(_LETTERS, options, strict=False))
    last = f"{exercise.answer} is option {letter}."
    return replace(
        exercise,
        question=f"{exercise.question}\n{shown}",
        steps=(*exercise.steps, last),
        thought=(*exercise.thought_steps, last),
        answer=letter,
        verifier="choice",
        wrong=(),
    )


TYPE = DatasetType(
    name="choice",
    skill="working a problem out and matching the result with the options",
    write=write,
    dial="that of the problem inside",
)
