"""Which language a text is in, by lingua."""

from __future__ import annotations

from functools import cache
from typing import Any

from phikit.errors import PhikitError, did_you_mean, how_to_install

# The languages of Phi-4-mini, by their ISO 639-1 codes: the set that is told apart
PHI_LANGUAGES = (
    "ar", "cs", "da", "de", "en", "es", "fi", "fr", "he", "hu", "it", "ja", "ko", "nb", "nl", "pl",
    "pt", "ru", "sv", "th", "tr", "uk", "zh",
)  # fmt: skip
_EXCERPT = 600  # characters looked at, from the middle: the beginning is often a title or a menu


def language_of(text: str, candidates: tuple[str, ...] = PHI_LANGUAGES) -> tuple[str, float]:
    """The likeliest language's code, and its probability among the candidates.

    Raises:
        PhikitError: lingua is missing, or knows no language of such a code.
    """
    start = max(0, (len(text) - _EXCERPT) // 2)
    values = _detector(candidates).compute_language_confidence_values(
        text[start : start + _EXCERPT]
    )
    if not values:
        return "", 0.0
    return values[0].language.iso_code_639_1.name.lower(), round(values[0].value, 3)


@cache
def _detector(candidates: tuple[str, ...]) -> Any:
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder
    except ImportError as e:
        raise PhikitError("telling languages apart needs lingua", how_to_install("data")) from e
    known = {code.name.lower(): code for code in _members(IsoCode639_1)}
    for code in candidates:
        if code not in known:
            raise PhikitError(f"no language has the code {code!r}", did_you_mean(code, known))
    builder = LanguageDetectorBuilder.from_iso_codes_639_1(*(known[c] for c in candidates))
    # trigrams alone: five times faster, and as good on texts longer than a sentence
    return builder.with_low_accuracy_mode().build()


def _members(enumeration: Any) -> list[Any]:
    return [getattr(enumeration, name) for name in dir(enumeration) if len(name) == 2]
