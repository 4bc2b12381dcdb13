"""The signs that KaTeX draws as pictures, told by the outline of their path.

They are tall brackets and what is stretched above or below: braces, arrows, hats. The outlines are
those of KaTeX's svgGeometry.js; a sign that is stretched begins alike at every size.
"""

from __future__ import annotations

import re
from typing import Any

_OUTLINES = {
    "M863,9c": "(", "M76,0c": ")", "M403 1759 .*v1759": "[", "M347 1759 .*v1759": "]",
    "M403 1759 ": "⌈", "M347 1759 ": "⌉", "M319 602 .* h263": "⌊", "M319 602 ": "⌋",
    "M145 15 .*M367 15": "‖", "M145 15 ": "|",
    "M6 548l": "⏞", "M0 6l6-6": "⏟",
    "M377 20c|M0 241v40h399891": "→", "M400000 241H110": "←",
    "M529 0h5l519|M1181 0h2l1171": "^", "M200 55|M344 55|M786 5[89]C": "~",
}  # fmt: skip
_SIGN = re.compile("|".join(f"({outline})" for outline in _OUTLINES), re.DOTALL)


def sign(node: Any) -> str:
    """What the first picture in an element shows; nothing if that is not known, or there is none.

    A stretched brace is drawn in three pieces, of which the first tells.
    """
    path = next(node.iter("path"), None)
    found = _SIGN.match(path.get("d") or "") if path is not None else None
    return list(_OUTLINES.values())[found.lastindex - 1] if found and found.lastindex else ""
