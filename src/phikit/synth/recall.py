"""Long-context recall: facts hidden among filler, and a question about one of them.

The same generator makes evaluation items (asked at several lengths before and after the context is
extended), short exercises (so that the skill exists within the short context) and long training
documents (the synthetic part of the long data, section 3.3 of the facts).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from phikit.errors import PhikitError
from phikit.synth.teacher import Candidate
from phikit.synth.words import PEOPLE, THINGS, plural

KIND = "recall"
Measure = Callable[[str], float]

_PLACES = (
    "garden", "kitchen", "market", "station", "school", "river", "hill", "harbour", "library",
    "park", "museum", "bakery", "farm", "bridge", "tower", "square", "hall", "shop", "barn",
    "beach",
)  # fmt: skip
_ADJECTIVES = (
    "old", "new", "small", "large", "quiet", "busy", "warm", "cold", "green", "white", "empty",
    "clean",
)  # fmt: skip
_ACTIONS = (
    "sits in", "walks to", "looks at", "runs past", "waits near", "comes from", "talks about",
    "paints", "dreams of", "rests in",
)  # fmt: skip


def _filler(rng: Random) -> str:
    """A sentence that states no fact that is asked for."""
    place, adjective = rng.choice(_PLACES), rng.choice(_ADJECTIVES)
    draw = rng.random()
    if draw < 0.4:
        return f"{rng.choice(PEOPLE)} {rng.choice(_ACTIONS)} the {adjective} {place}."
    if draw < 0.7:
        return f"The {place} is {adjective} and full of {plural(rng.choice(THINGS))}."
    return f"There is a {rng.choice(THINGS)} in the {adjective} {place}."


def _passage(rng: Random, keys: int, length: float, measure: Measure) -> tuple[str, dict[str, str]]:
    """Facts spread evenly at random among filler, about `length` long by `measure`."""
    names = rng.sample(PEOPLE, keys)
    codes = dict(zip(names, (f"{rng.randint(100, 999)}" for _ in names), strict=True))
    facts = [f"The code of {name} is {code}." for name, code in codes.items()]
    room = length - measure(" ".join(facts))
    if room < 0:
        raise PhikitError(
            f"{keys} codes do not fit into a passage of length {length:.0f}",
            "ask for fewer keys or longer passages",
        )
    sentences: list[str] = []
    while room > 0:
        sentence = _filler(rng)
        room -= measure(" " + sentence)
        if room > 0:
            sentences.append(sentence)
    for fact in facts:
        sentences.insert(rng.randint(0, len(sentences)), fact)
    return " ".join(sentences), codes


def _asked(name: str) -> str:
    return f"What is the code of {name}?"


def exercise(
    stream: str, index: int, length: float, keys: int = 4, measure: Measure = len
) -> Candidate:
    """One passage with one question.

    Args:
        stream: names the random stream ("0/eval").
        length: of the whole prompt, in the units of `measure` (tokens, characters).
        keys: how many people have a code.
        measure: the length of a text.
    """
    rng = Random(f"{stream}/{KIND}/{length}/{index}")
    passage, codes = _passage(rng, keys, length - measure(_asked("Wendy")), measure)
    name = rng.choice(sorted(codes))
    return Candidate(
        kind=KIND,
        source="synthetic",
        question=f"{passage} {_asked(name)}",
        response=f"The code of {name} is {codes[name]}.\nAnswer: {codes[name]}",
        answer=codes[name],
        verifier="exact",
        meta={"teacher": "procedural", "stream": stream, "index": index, "length": length},
    )


def long_document(
    stream: str, index: int, length: float, keys: int = 12, asked: int = 6, measure: Measure = len
) -> Candidate:
    """A long passage followed by several questions with their answers.

    The first question has the form of an evaluation item; the others follow in the same document,
    so that a long document teaches more than one look back.
    """
    rng = Random(f"{stream}/long-{KIND}/{length}/{index}")
    room = length - asked * measure(_block("Wendy", "000"))
    passage, codes = _passage(rng, keys, room, measure)
    names = rng.sample(sorted(codes), min(asked, len(codes)))
    first = names[0]
    text = f"Question: {passage} " + "\n".join(_block(n, codes[n]) for n in names).removeprefix(
        "Question: "
    )
    return Candidate(
        kind=KIND,
        source="synthetic",
        question=f"{passage} {_asked(first)}",
        response=f"The code of {first} is {codes[first]}.\nAnswer: {codes[first]}",
        answer=codes[first],
        verifier="exact",
        text=text,
        meta={"teacher": "procedural", "stream": stream, "index": index, "length": length},
    )


def _block(name: str, code: str) -> str:
    return f"Question: {_asked(name)}\nSolution: The code of {name} is {code}.\nAnswer: {code}"
