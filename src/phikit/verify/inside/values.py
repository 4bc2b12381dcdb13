"""Values of a program, written so that equal values give equal text."""

from __future__ import annotations

import hashlib

LONGEST_KEY = 2_000


def canonical(value: object) -> str:
    """Text that is equal for two values of Python's literal types exactly if the values are equal.

    As with `==`, 1, 1.0 and True are equal, a list is no tuple, and sets have no order. Any other
    type gives text that equals no literal's: an object whose `__eq__` always agrees gains nothing.
    """
    if value is None or value is Ellipsis:
        return repr(value)
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, float):
        return hex(int(value)) if value.is_integer() else float.__repr__(value)
    if isinstance(value, complex):
        if value.imag == 0:
            return canonical(value.real)
        return f"complex({canonical(value.real)},{canonical(value.imag)})"
    if isinstance(value, str):
        return str.__repr__(value)
    if isinstance(value, bytes | bytearray):
        return bytes.__repr__(bytes(value))
    if isinstance(value, tuple | list):
        open_, close = "()" if isinstance(value, tuple) else "[]"
        return open_ + ",".join(map(canonical, value)) + close
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(map(canonical, value))) + "}"
    if isinstance(value, dict):
        items = sorted(f"{canonical(k)}:{canonical(v)}" for k, v in value.items())
        return "dict{" + ",".join(items) + "}"
    return f"<{type(value).__name__}>"


def key_of(value: object) -> str:
    """`canonical`, with what is long replaced by its hash."""
    text = canonical(value)
    if len(text) <= LONGEST_KEY:
        return text
    data = text.encode("utf-8", "surrogatepass")
    return "blake2b:" + hashlib.blake2b(data, digest_size=32).hexdigest()
