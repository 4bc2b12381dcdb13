"""Which licence a source file is under, as its own head says, in SPDX's names."""

from __future__ import annotations

import re

_HEAD = 6000  # characters of a file in which its licence stands
_SPDX = re.compile(
    r"SPDX-License-Identifier:\s*\(?([A-Za-z0-9.+-]+(?:\s+(?:OR|AND|WITH)\s+[A-Za-z0-9.+-]+)*)"
)
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
    """Whether a licence expression can be met with allowed licences alone."""
    choices = re.split(r"\s+OR\s+", licence)
    return any(
        all(part.split(" WITH ")[0] in allow for part in re.split(r"\s+AND\s+", c)) for c in choices
    )
