"""The filters of a recipe, in the order it names them, and what each said of a document.

A step takes a document and gives it back, changed perhaps (personal data replaced, a language
noted), or gives the reason to reject it. What a step measured is kept under the document's
`meta["filters"]`, so that from any sample one can see what it passed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator

from phikit.data import filters as house
from phikit.data import published_rules as published
from phikit.data.filters import FilterConfig
from phikit.data.language import PHI_LANGUAGES, language_of
from phikit.data.licences import PERMISSIVE, allowed, licence_of
from phikit.data.personal import replace_personal
from phikit.errors import did_you_mean
from phikit.records import Document
from phikit.stage import Config


class FilteringConfig(Config):
    """Which filters, in which order, and their settings."""

    prose: tuple[str, ...] = Field(
        default=("length", "words", "lines", "repetition", "compression"),
        description="filters of documents that are not code, in order: length, words, lines, "
        "repetition, compression (limits in `limits`, fitted to documentation), gopher_quality, "
        "gopher_repetition, c4, fineweb (limits as published), language, personal, licence",
    )
    code: tuple[str, ...] = Field(
        default=("length", "handwritten", "parses", "compression"),
        description="filters of code, in order: the above and handwritten (neither generated nor "
        "minified) and parses (Python)",
    )
    limits: FilterConfig = Field(default_factory=FilterConfig)
    languages: tuple[str, ...] = Field(
        default=("en",), description="languages that the filter `language` lets pass"
    )
    candidates: tuple[str, ...] = Field(
        default=PHI_LANGUAGES, description="languages that it tells apart"
    )
    min_language: float = Field(
        default=0.5, description="least probability of the language among the candidates"
    )
    personal: Literal["replace", "drop"] = Field(
        default="replace", description="what happens to personal data: the finds, or the document"
    )
    licences: tuple[str, ...] = Field(
        default=PERMISSIVE, description="licences that the filter `licence` lets pass"
    )
    unlicensed: bool = Field(
        default=False, description="whether it lets pass what names no licence"
    )
    c4_terminal: bool = Field(
        default=False, description="C4's rule that a line must end a sentence (FineWeb: no)"
    )

    @field_validator("prose", "code")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in STEPS:
                raise ValueError(f"no filter is named {name!r}; {did_you_mean(name, STEPS)}")
        return names


Outcome = Document | str
Step = Callable[[Document, FilteringConfig], Outcome]


def _house(check: house.Filter) -> Step:
    def step(document: Document, settings: FilteringConfig) -> Outcome:
        return check(document, settings.limits) or document

    return step


def _rule(rule: Callable[[str], str | None], name: str) -> Step:
    def step(document: Document, settings: FilteringConfig) -> Outcome:
        reason = rule(document.text)
        return f"{name}: {reason}" if reason else document

    return step


def _c4(document: Document, settings: FilteringConfig) -> Outcome:
    text, reason = published.c4_lines(document.text, settings.c4_terminal)
    if reason:
        return f"C4: {reason}"
    dropped = document.text.count("\n") - text.count("\n")
    return _noted(document, "c4", {"lines dropped": dropped}, text=text) if dropped else document


def _language(document: Document, settings: FilteringConfig) -> Outcome:
    code, likely = language_of(document.text, settings.candidates)
    if code not in settings.languages:
        return f"language: {code or 'none'}"
    if likely < settings.min_language:
        return "language: uncertain"
    return _noted(document, "language", {"language": code, "probability": likely}, language=code)


def _personal(document: Document, settings: FilteringConfig) -> Outcome:
    text, found = replace_personal(document.text)
    if not found:
        return document
    if settings.personal == "drop":
        return f"personal data: {', '.join(found)}"
    return _noted(document, "personal", found, text=text)


def _licence(document: Document, settings: FilteringConfig) -> Outcome:
    named = document.licence or licence_of(document.text)
    if not named:
        return document if settings.unlicensed else "licence: none named"
    if not allowed(named, settings.licences):
        return f"licence: {named}"
    return document if document.licence else _noted(document, "licence", {}, licence=named)


def _noted(document: Document, step: str, said: dict[str, Any], **changes: Any) -> Document:
    """The document with what a step said of it; a changed one has the original as its parent."""
    notes = {**document.meta.get("filters", {}), **({step: said} if said else {})}
    meta = {**document.meta, **({"filters": notes} if notes else {})}
    parents = document.parents
    if "text" in changes and document.id not in parents:
        parents = (*parents, document.id)
    return dataclasses.replace(document, id="", parents=parents, meta=meta, **changes)


STEPS: dict[str, Step] = {
    "length": _house(house.length),
    "words": _house(house.word_statistics),
    "lines": _house(house.line_shapes),
    "repetition": _house(house.repetition),
    "compression": _house(house.compression),
    "handwritten": _house(house.handwritten),
    "parses": _house(house.parses),
    "gopher_quality": _rule(published.gopher_quality, "Gopher"),
    "gopher_repetition": _rule(published.gopher_repetition, "Gopher"),
    "c4": _c4,
    "fineweb": _rule(published.fineweb_quality, "FineWeb"),
    "language": _language,
    "personal": _personal,
    "licence": _licence,
}


def apply(document: Document, settings: FilteringConfig) -> Outcome:
    """The document as all its filters leave it, or the first reason to reject it."""
    if not document.text.strip():
        return "too short"
    for name in settings.code if document.source == "code" else settings.prose:
        outcome = STEPS[name](document, settings)
        if isinstance(outcome, str):
            return outcome
        document = outcome
    return document
