"""All procedural dataset types by name."""

from __future__ import annotations

from phikit.errors import PhikitError, did_you_mean
from phikit.synth.exercise import DatasetType
from phikit.synth.types import (
    calendar,
    changes,
    choice,
    comparison,
    complete,
    equations,
    groups,
    lists,
    ordering,
    percent,
    shopping,
    strings,
    trace,
    units,
)

TYPES: dict[str, DatasetType] = {
    module.TYPE.name: module.TYPE
    for module in (
        changes,
        groups,
        shopping,
        percent,
        units,
        equations,
        comparison,
        ordering,
        calendar,
        lists,
        strings,
        choice,
        trace,
        complete,
    )
}


def find(name: str) -> DatasetType:
    """A dataset type by name.

    Raises:
        PhikitError: there is none of that name; names the nearest.
    """
    if name not in TYPES:
        raise PhikitError(f"no dataset type is named {name!r}", did_you_mean(name, TYPES))
    return TYPES[name]
