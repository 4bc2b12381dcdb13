"""The "instructions" verifier: does a response keep to demands that a program can check?

`Problem.answer` is JSON, a list of {"id": "keywords:frequency", "kwargs": {...}} in the terms of
IFEval (Zhou et al. 2023, arXiv 2311.07911): 25 kinds of demand, from "no commas" to "answer in
Hindi". A response passes when it keeps to all of them (the paper's strict, prompt-level accuracy);
its score is the share that it keeps to. The paper counts sentences with NLTK's trained splitter;
here one ends at . ! or ? before white space, unless the word is a title or a single letter.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence

from phikit.errors import BadRecord, PhikitError, did_you_mean, how_to_install
from phikit.records import Verdict
from phikit.verify.base import Problem, register
from phikit.verify.demands import Demand, check_arguments, impossible
from phikit.verify.verdicts import verdict

Check = Callable[[str, Demand], bool]

_YES_NO = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCE = re.compile(r"\A```(?:json)?\s*|\s*```\Z", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]”’]*(?=\s|\Z)")
_NO_END = re.compile(r"(?:\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|inc|jr|sr)|\b[A-Z])\Z", re.I)
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def sentences(text: str) -> int:
    """How many sentences; what follows the last end mark counts as one."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        before = text[start : end.start()]
        if end[0][0] == "." and _NO_END.search(before) and end.end() < len(text.rstrip()):
            continue
        count += bool(before.strip())
        start = end.end()
    return count + bool(text[start:].strip())


def language(text: str) -> str | None:
    """The two-letter code of a text's language, or None where none can be told.

    Raises:
        PhikitError: the library that tells it is not installed.
    """
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError as e:
        raise PhikitError(
            "telling a response's language needs langdetect", how_to_install("ifeval")
        ) from e
    DetectorFactory.seed = 0  # it draws: the same text must always get the same verdict
    try:
        return detect(text)
    except LangDetectException:
        return None


def _related(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _found(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.IGNORECASE))


def _is_json(text: str, _: Demand) -> bool:
    try:
        json.loads(_FENCE.sub("", text.strip()))
    except ValueError:
        return False
    return True


def _bullets(text: str, d: Demand) -> bool:
    lines = re.findall(r"^\s*(?:\*[^*\n].*|-.*)$", text, re.MULTILINE)
    return len(lines) == d["num_bullets"]


def _highlights(text: str, d: Demand) -> bool:
    """*so*; what stands in **double** asterisks counts twice, as the paper's program has it."""
    once = [t for t in re.findall(r"\*([^\n*]*)\*", text) if t.strip()]
    twice = [t for t in re.findall(r"\*\*([^\n*]*)\*\*", text) if t.strip()]
    return len(once) + len(twice) >= d["num_highlights"]


def _paragraphs(text: str, d: Demand) -> bool:
    """As many paragraphs as demanded between dividers ***, none of them empty."""
    parts = [p.strip() for p in re.split(r"\s?\*\*\*\s?", text)]
    count = len(parts) - (not parts[0]) - (len(parts) > 1 and not parts[-1])
    return all(parts[1:-1]) and count == d["num_paragraphs"]


def _first_word(text: str, d: Demand) -> bool:
    """As many paragraphs between empty lines as demanded, the n-th beginning with a word."""
    parts = text.split("\n\n")
    count = sum(bool(p.strip()) for p in parts)
    if count != d["num_paragraphs"] or d["nth_paragraph"] > count:
        return False
    words = parts[d["nth_paragraph"] - 1].split()
    word = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0] if words else ""
    return bool(words) and word.lower() == d["first_word"].lower()


def _two_responses(text: str, _: Demand) -> bool:
    parts = [p.strip() for p in text.split("******")]
    filled = [p for p in parts if p]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _postscript(text: str, d: Demand) -> bool:
    marker = d["postscript_marker"]
    return bool(_found(_POSTSCRIPTS.get(marker, re.escape(marker)), text))


def _in_case(right: Callable[[str], bool]) -> Check:
    return lambda text, _: right(text) and language(text) in ("en", None)


CHECKS: dict[str, Check] = {
    "change_case:capital_word_frequency": lambda t, d: _related(
        sum(word.isupper() for word in re.findall(r"\w+(?:[-'’]\w+)*", t)),
        d["capital_relation"], d["capital_frequency"],
    ),
    "change_case:english_capital": _in_case(str.isupper),
    "change_case:english_lowercase": _in_case(str.islower),
    "combination:repeat_prompt": lambda t, d: (
        t.strip().lower().startswith(d["prompt_to_repeat"].strip().lower())
    ),
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": lambda t, d: (
        _found(r"\[.*?\]", t) >= d["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": lambda t, _: any(a in t for a in _YES_NO),
    "detectable_format:json_format": _is_json,
    "detectable_format:multiple_sections": lambda t, d: (
        len(re.findall(rf"{re.escape(d['section_spliter'])}\s?\d+", t)) >= d["num_sections"]
    ),
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": lambda t, _: any(
        found.strip("<> \t") for found in re.findall(r"<<[^\n]+>>", t)
    ),
    "keywords:existence": lambda t, d: all(_found(re.escape(k), t) for k in d["keywords"]),
    "keywords:forbidden_words": lambda t, d: not any(
        _found(rf"\b{re.escape(word)}\b", t) for word in d["forbidden_words"]
    ),
    "keywords:frequency": lambda t, d: _related(
        _found(re.escape(d["keyword"].strip()), t), d["relation"], d["frequency"]
    ),
    "keywords:letter_frequency": lambda t, d: _related(
        t.lower().count(d["letter"].lower()), d["let_relation"], d["let_frequency"]
    ),
    "language:response_language": lambda t, d: language(t) in (d["language"], None),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_sentences": lambda t, d: _related(
        sentences(t), d["relation"], d["num_sentences"]
    ),
    "length_constraints:number_words": lambda t, d: _related(
        len(re.findall(r"\w+", t)), d["relation"], d["num_words"]
    ),
    "punctuation:no_comma": lambda t, _: "," not in t,
    "startend:end_checker": lambda t, d: (
        t.strip().strip('"').lower().endswith(d["end_phrase"].strip().lower())
    ),
    "startend:quotation": lambda t, _: (
        len(t.strip()) > 1 and t.strip()[0] == t.strip()[-1] == '"'
    ),
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _demands(answer: str, where: str) -> tuple[tuple[str, Demand], ...]:
    """The demands of a problem.

    Raises:
        BadRecord: they are no such JSON, a demand is unknown (names the nearest), or it lacks what
            it needs.
    """
    try:
        demands = tuple((str(d["id"]), dict(d.get("kwargs") or {})) for d in json.loads(answer))
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise BadRecord(
            f"{where}: the answer is no list of demands ({type(e).__name__})",
            'it must look like [{"id": "punctuation:no_comma", "kwargs": {}}]',
        ) from e
    for name, demand in demands:
        if name not in CHECKS:
            raise BadRecord(
                f"{where}: no program here checks the demand {name!r}",
                did_you_mean(name, CHECKS),
            )
        check_arguments(name, demand, where)
    return demands


@register("instructions")
class InstructionsVerifier:
    """`Problem.answer` is the list of demands."""

    name = "instructions"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Raises BadRecord where a demand is unknown or lacks what it needs."""
        return [self._one(problem, text) for problem, text in items]

    def impossible(self, answer: str, where: str) -> str:
        """See `phikit.verify.base.Demanding`."""
        return impossible(_demands(answer, where))

    def _one(self, problem: Problem, text: str) -> Verdict:
        demands = _demands(problem.answer, f"problem {problem.id or repr(problem.prompt[:40])}")
        broken = [n for n, d in demands if not (text.strip() and CHECKS[n](text, d))]
        share = 1 - len(broken) / len(demands) if demands else 1.0
        reason = f"not kept: {', '.join(broken)}" if broken else "all demands are kept"
        return verdict("instructions", not broken, reason, share)
