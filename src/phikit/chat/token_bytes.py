"""The bytes that each token stands for.

Text comes out of a model in pieces that may be less than a character. As bytes the pieces simply
add up, so what must look at text while it grows (stop texts, constraints, streams) looks at bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from phikit.chat.tokenizer import Tokenizer
from phikit.errors import PhikitError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how a vocabulary with byte fallback writes a byte
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # and how it writes a space


def token_bytes(tokenizer: Tokenizer, size: int = 0) -> list[bytes]:
    """The bytes of every token id, control tokens spelled out; b"" for ids that have no token.

    Args:
        size: how long the list must at least be (a model's embedding may be padded).

    Raises:
        PhikitError: the tokenizer joins its tokens by other rules than putting them side by side.
    """
    backend = json.loads(tokenizer.as_json())
    vocabulary = tokenizer.vocabulary()
    found = [b""] * max(size, tokenizer.vocab_size)
    kinds = _kinds(backend.get("decoder"))
    letters = _letters()
    for piece, token in vocabulary.items():
        if piece in tokenizer.special:
            found[token] = piece.encode()
        elif "ByteLevel" in kinds:
            found[token] = _of_letters(piece, letters)
        elif "ByteFallback" in kinds:
            byte = _BYTE.fullmatch(piece)
            found[token] = (
                bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()
            )
        else:
            raise PhikitError(
                f"the tokenizer's decoder ({', '.join(kinds) or 'none'}) does not put bytes side "
                "by side",
                "use a byte-level tokenizer, or one with byte fallback",
            )
    return found


def _kinds(decoder: Any) -> list[str]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [kind for part in decoder.get("decoders", ()) for kind in _kinds(part)]
    return [str(decoder.get("type"))]


def _letters() -> dict[str, int]:
    """GPT-2's alphabet: bytes that print stand for themselves, the others for letters from 256."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _of_letters(piece: str, letters: dict[str, int]) -> bytes:
    if all(letter in letters for letter in piece):
        return bytes(letters[letter] for letter in piece)
    return piece.encode()  # an added token that is no control token
