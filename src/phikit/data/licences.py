"""Which licence a source file is under, as its own head says, in SPDX's names."""

from __future__ import annotations

import re

_HEAD = 6000  # characters of a file in which its licence stands
_SPDX = re.compile(
    r"SPDX-License-Identifier:[ \t]*"
    r"((?:\([ \t]*)*[A-Z0-9.+-]+(?:[ \t()]+(?:OR|AND|WITH)[ \t()]+[A-Z0-9.+-]+)*[ \t]*\)*)",
    re.IGNORECASE,
)
_PART = re.compile(r"[()]|[\w.+-]+")
_SPACE = re.compile(r"[\s#/*;%-]+")
# words that tell a licence, most telling first; all of one line must be there
_PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGPL-3.0", ("gnu affero general public license",)),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1", ("gnu lesser general public license",)),
    ("GPL-3.0", ("gnu general public license", "version 3")),
    ("GPL-2.0", ("gnu general public license",)),
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("MPL-2.0", ("mozilla public license", "2.0")),
    ("BSL-1.0", ("boost software license",)),
    ("PSF-2.0", ("python software foundation license",)),
    ("MIT", ("permission is hereby granted, free of charge",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("CC0-1.0", ("cc0 1.0",)),
    (
        "Zlib",
        (
            "this software is provided 'as is', without any express or implied warranty",
            "altered source versions must be plainly marked",
        ),
    ),
    ("MIT", ("under the mit license",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("Proprietary", ("all rights reserved", "confidential")),
)
PERMISSIVE = (
    "MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "BSL-1.0", "CC0-1.0", "Unlicense",
    "PSF-2.0", "Zlib", "0BSD",
)  # fmt: skip


def licence_of(text: str) -> str:
    """The licence that the head of a file names; "" if it names none."""
    head = text[:_HEAD]
    if spdx := _SPDX.search(head):
        return " ".join(spdx[1].split())
    plain = _SPACE.sub(" ", head).lower()
    for name, phrases in _PHRASES:
        if all(phrase in plain for phrase in phrases):
            return name
    return ""


def allowed(licence: str, allow: tuple[str, ...]) -> bool:
    """Whether a licence expression of SPDX can be met with allowed licences alone.

    One that is no expression is met by nothing.
    """
    known = {name.lower() for name in allow}
    if licence.lower() in known:  # whatever name it goes by
        return True
    parts = _PART.findall(licence)[::-1]  # the next one is at the end

    def one() -> bool:
        part = parts.pop()
        if part == "(":
            met = either()
            if not parts or parts.pop() != ")":
                raise ValueError("a bracket is not closed")
            return met
        if part.lower() in ("or", "and", "with", ")"):
            raise ValueError(f"{part} is no licence")
        if parts and parts[-1].lower() == "with":  # an exception only ever allows more
            del parts[-2:]
        return part.lower() in known

    def both() -> bool:
        met = one()
        while parts and parts[-1].lower() == "and":
            parts.pop()
            met = one() and met
        return met

    def either() -> bool:
        met = both()
        while parts and parts[-1].lower() == "or":
            parts.pop()
            met = both() or met
        return met

    try:
        return either() and not parts
    except (ValueError, IndexError):
        return False
