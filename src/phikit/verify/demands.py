"""What the demands of the "instructions" verifier need, and which of them no response can keep to.

A demand bounds something that can be counted in a response: words, commas, a letter. Demands whose
bounds leave no number free contradict each other, or themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from phikit.errors import BadRecord

Demand = Mapping[str, Any]  # the keyword arguments of one demand

_COUNT, _TEXT, _TEXTS = "a number", "a text", "a list of texts"
_RELATION = "'less than' or 'at least'"
NEEDS: dict[str, dict[str, str]] = {
    "change_case:capital_word_frequency": {
        "capital_relation": _RELATION, "capital_frequency": _COUNT,
    },
    "combination:repeat_prompt": {"prompt_to_repeat": _TEXT},
    "detectable_content:number_placeholders": {"num_placeholders": _COUNT},
    "detectable_content:postscript": {"postscript_marker": _TEXT},
    "detectable_format:multiple_sections": {"section_spliter": _TEXT, "num_sections": _COUNT},
    "detectable_format:number_bullet_lists": {"num_bullets": _COUNT},
    "detectable_format:number_highlighted_sections": {"num_highlights": _COUNT},
    "keywords:existence": {"keywords": _TEXTS},
    "keywords:forbidden_words": {"forbidden_words": _TEXTS},
    "keywords:frequency": {"keyword": _TEXT, "relation": _RELATION, "frequency": _COUNT},
    "keywords:letter_frequency": {
        "letter": _TEXT, "let_relation": _RELATION, "let_frequency": _COUNT,
    },
    "language:response_language": {"language": _TEXT},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": _COUNT, "nth_paragraph": _COUNT, "first_word": _TEXT,
    },
    "length_constraints:number_paragraphs": {"num_paragraphs": _COUNT},
    "length_constraints:number_sentences": {"relation": _RELATION, "num_sentences": _COUNT},
    "length_constraints:number_words": {"relation": _RELATION, "num_words": _COUNT},
    "startend:end_checker": {"end_phrase": _TEXT},
}  # fmt: skip


def check_arguments(name: str, demand: Demand, where: str) -> None:
    """
    Raises:
        BadRecord: the demand lacks an argument, or has a wrong one; names it and its value.
    """
    for key, kind in NEEDS.get(name, {}).items():
        if key not in demand:
            raise BadRecord(f"{where}: the demand {name!r} lacks its {key!r}", f"it is {kind}")
        if not _is(kind, demand[key]):
            raise BadRecord(
                f"{where}: the demand {name!r} has the {key} {demand[key]!r}",
                f"it must be {kind}",
            )


def _is(kind: str, value: Any) -> bool:
    if kind == _COUNT:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == _TEXTS:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return isinstance(value, str) and (kind == _TEXT or value in ("less than", "at least"))


class _Bound(NamedTuple):
    """How often something occurs in a response that keeps to a demand."""

    what: str
    least: float
    most: float


def impossible(demands: Sequence[tuple[str, Demand]]) -> str:
    """Why no response keeps to all demands, as far as their numbers and words tell; or nothing."""
    met: dict[str, list[tuple[_Bound, str]]] = {}
    for name, demand in demands:
        shown = f"{name} {json.dumps(demand, ensure_ascii=False)}"
        for bound in _bounds(name, demand):
            same = met.setdefault(bound.what, [])
            same.append((bound, shown))
            for other, other_shown in same:
                if max(bound.least, other.least, 0) > min(bound.most, other.most):
                    both = shown if other_shown == shown else f"both {other_shown} and {shown}"
                    return f"nothing keeps to {both}"
    return ""


def _bounds(name: str, d: Demand) -> Iterator[_Bound]:
    match name:
        case "change_case:english_capital":
            yield _exactly("capitals alone", 1)
        case "change_case:english_lowercase":
            yield _exactly("capitals alone", 0)
        case "change_case:capital_word_frequency":
            yield _related("capital words", d["capital_relation"], d["capital_frequency"])
        case "keywords:letter_frequency":
            yield _related(f"{d['letter'].lower()!r}", d["let_relation"], d["let_frequency"])
        case "length_constraints:number_sentences":
            yield _related("sentences", d["relation"], d["num_sentences"])
        case "length_constraints:number_words":
            yield _related("words", d["relation"], d["num_words"])
        case "detectable_format:number_bullet_lists":
            yield _exactly("bullets", d["num_bullets"])
        case "length_constraints:number_paragraphs":
            yield _exactly("divided paragraphs", d["num_paragraphs"])
        case "length_constraints:nth_paragraph_first_word":
            yield _exactly("paragraphs", d["num_paragraphs"])
            yield _Bound("paragraphs", d["nth_paragraph"], math.inf)
        case "punctuation:no_comma":
            yield _exactly("','", 0)
        case "keywords:frequency":
            bound = _related(f"{d['keyword'].strip().lower()!r}", d["relation"], d["frequency"])
            yield bound
            if bound.least > 0:
                yield from _holds([d["keyword"].strip()])
        case "keywords:existence":
            yield from _holds(d["keywords"])
        case "startend:end_checker":
            yield from _holds([d["end_phrase"].strip()])
        case "combination:repeat_prompt":
            yield from _holds([d["prompt_to_repeat"].strip()])


def _holds(texts: Iterable[str]) -> Iterator[_Bound]:
    """That these texts occur, with the commas in them."""
    for text in texts:
        yield _Bound(f"{text.lower()!r}", 1, math.inf)
        if "," in text:
            yield _Bound("','", 1, math.inf)


def _exactly(what: str, count: float) -> _Bound:
    return _Bound(what, count, count)


def _related(what: str, relation: str, count: float) -> _Bound:
    if relation == "at least":
        return _Bound(what, count, math.inf)
    return _Bound(what, -math.inf, math.ceil(count) - 1)
