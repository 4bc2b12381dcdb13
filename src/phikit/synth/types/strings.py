"""Words and letters: count, reverse, pick, join."""

from __future__ import annotations

from random import Random

from phikit.synth.exercise import DatasetType, Exercise, near_misses
from phikit.synth.words import PEOPLE, THINGS, WORDS

_VOWELS, _CONSONANTS = "aeiou", "bdfgklmnprstvz"
_PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")


def _word(rng: Random, difficulty: int) -> str:
    """A word of this world, or as often a made-up one, so that its letters are what counts."""
    longest = (4, 5, 6, 8, 12)[difficulty - 1]
    if rng.random() < 0.5:
        length = rng.randint(3, longest)
        return "".join(rng.choice(_VOWELS if i % 2 else _CONSONANTS) for i in range(length))
    words = [w for w in (*WORDS, *THINGS, *(p.lower() for p in PEOPLE)) if 3 <= len(w) <= longest]
    return rng.choice(words) if difficulty < 5 else rng.choice(words) + rng.choice(words)


def _spelled(word: str) -> str:
    return " ".join(word)


def _reverse(rng: Random, word: str) -> Exercise:
    question = rng.choice(
        (f'Write the word "{word}" backwards.', f'What is "{word}" spelled backwards?')
    )
    turned = word[::-1]
    lines = [_spelled(word)]
    for i in range(len(word)):
        lines.append(f"{word[len(word) - 1 - i]}: {_spelled(turned[: i + 1])}")
    return Exercise(
        question=question,
        steps=(f"{_spelled(word)} turns into {_spelled(turned)}.",),
        answer=turned,
        verifier="exact",
        thought=tuple(lines),
    )


def _occurrences(rng: Random, word: str) -> Exercise:
    letter = rng.choice(word)
    count, lines = 0, []
    for c in word:
        count += c == letter
        lines.append(f"{c}: {'yes' if c == letter else 'no'}, {count}")
    return Exercise(
        question=f'How many times does the letter {letter} occur in "{word}"?',
        steps=(f"{_spelled(word)}: {count} of them {'is' if count == 1 else 'are'} {letter}.",),
        answer=str(count),
        thought=tuple(lines),
        wrong=near_misses(count, rng),
    )


def _letter(rng: Random, word: str) -> Exercise:
    place = rng.randrange(min(len(word), len(_PLACES)))
    lines = tuple(f"{i}: {c}" for i, c in enumerate(word[: place + 1], 1))
    return Exercise(
        question=f'What is the {_PLACES[place]} letter of "{word}"?',
        steps=(f"The letters are {_spelled(word)}.",),
        answer=word[place],
        verifier="exact",
        thought=lines,
    )


def _initials(rng: Random, word: str) -> Exercise:
    words = [word, *rng.sample(WORDS, 2)]
    answer = "".join(w[0] for w in words)
    return Exercise(
        question=f"Join the first letters of these words: {', '.join(words)}.",
        steps=(", ".join(f"{w}: {w[0]}" for w in words) + ".",),
        answer=answer,
        verifier="exact",
        thought=tuple(f"{w}: {w[0]}, {answer[: i + 1]}" for i, w in enumerate(words)),
    )


def _without(rng: Random, word: str) -> Exercise:
    letter = rng.choice(word)
    rest = word.replace(letter, "")
    if not rest:
        return _reverse(rng, word)
    lines, kept = [_spelled(word)], ""
    for c in word:
        kept += c if c != letter else ""
        lines.append(f"{c}: {'keep' if c != letter else 'drop'}, {_spelled(kept)}".rstrip(", "))
    return Exercise(
        question=f'Remove every {letter} from "{word}". What is left?',
        steps=(f"{_spelled(word)} without {letter} is {_spelled(rest)}.",),
        answer=rest,
        verifier="exact",
        thought=tuple(lines),
    )


def write(rng: Random, difficulty: int) -> Exercise:
    task = rng.choice((_reverse, _occurrences, _letter, _initials, _without))
    return task(rng, _word(rng, difficulty))


TYPE = DatasetType(
    name="strings",
    skill="seeing the letters of a word one by one",
    write=write,
    dial="words up to 4, 5, 6, 8, 12 letters",
)
