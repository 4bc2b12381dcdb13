"""`--set KEY=VALUE` arguments for one stage's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from phikit.errors import PhikitError
from phikit.recipes import source
from phikit.recipes.schema import check
from phikit.stage import Config

C = TypeVar("C", bound=Config)


def from_settings(config: type[C], settings: Sequence[str], subject: str) -> C:
    """The settings, checked; dotted keys reach into nested ones.

    Raises:
        PhikitError: an argument has no "=", names no setting (the nearest is named), or its value
            does not fit.
    """
    raw: dict[str, Any] = {}
    places = source.Places()
    places.put((), "--set")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise PhikitError(f"--set {setting}: no '=' in it", "write --set lr=1e-4")
        source.put(raw, (), key.split("."), source.scalar(text, f"--set {setting}"), places,
                   f"--set {setting}")  # fmt: skip
    return check(config, raw, places, (), subject)
