"""Structured output: a reply's text is read as JSON and checked against a JSON schema.

The part of JSON Schema that endpoints accept for structured output is checked: type, properties,
required, additionalProperties, items, enum, and the bounds on length, number and count. Many
endpoints ignore the schema that they are sent, so it is never taken on trust.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from phikit.errors import PhikitError, did_you_mean

Schema = Mapping[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_KEYS = frozenset(
    (
        "type", "properties", "required", "additionalProperties", "items", "enum", "description",
        "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems",
    )
)  # fmt: skip
# what a keyword's value has to be
_VALUES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), int),
    **dict.fromkeys(("minimum", "maximum"), (int, float)),
    **dict.fromkeys(("enum", "required"), list),
    **dict.fromkeys(("properties", "items"), dict),
    "additionalProperties": bool,
}
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```\s*$", re.DOTALL)


def check_schema(schema: Schema, where: str) -> None:
    """Refuses a schema with a word that would not be checked.

    Raises:
        PhikitError: an unknown keyword or type; names where and the nearest right one.
    """
    for key in schema:
        if key not in _KEYS:
            raise PhikitError(
                f"{where}: the schema keyword {key!r} is unknown", did_you_mean(key, _KEYS)
            )
        if not isinstance(schema[key], _VALUES.get(key, object)) or isinstance(
            schema[key], bool
        ) != (key == "additionalProperties"):
            raise PhikitError(f"{where}.{key}: {schema[key]!r} is no value for it")
    kind = schema.get("type")
    if kind is not None and kind not in _TYPES:
        raise PhikitError(f"{where}.type: no type {kind!r}", did_you_mean(str(kind), _TYPES))
    for name, inner in schema.get("properties", {}).items():
        check_schema(inner, f"{where}.{name}")
    for name in schema.get("required", ()):
        if name not in schema.get("properties", {}):
            raise PhikitError(f"{where}.required: {name!r} is not among the properties")
    if "items" in schema:
        check_schema(schema["items"], f"{where}[]")


def fault(value: Any, schema: Schema, where: str = "reply") -> str:
    """What is wrong with a value, or an empty string."""
    kind = schema.get("type")
    if kind and (
        not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")
    ):
        return f"{where} should be of type {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is none of {schema['enum']}"
    match value:
        case dict():
            return _object_fault(value, schema, where)
        case list():
            if found := _bounds(len(value), schema, ("minItems", "maxItems"), f"{where}'s count"):
                return found
            inner = schema.get("items", {})
            faults = (fault(v, inner, f"{where}[{i}]") for i, v in enumerate(value))
            return next((f for f in faults if f), "")
        case str():
            return _bounds(len(value), schema, ("minLength", "maxLength"), f"{where}'s length")
        case int() | float():
            return _bounds(value, schema, ("minimum", "maximum"), where)
    return ""


def _object_fault(value: dict[str, Any], schema: Schema, where: str) -> str:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where} lacks {name!r}"
    for name, inner in value.items():
        if name in properties:
            if found := fault(inner, properties[name], f"{where}.{name}"):
                return found
        elif schema.get("additionalProperties") is False:
            return f"{where} has an unknown {name!r}"
    return ""


def _bounds(size: float, schema: Schema, keys: tuple[str, str], what: str) -> str:
    low, high = schema.get(keys[0]), schema.get(keys[1])
    if low is not None and size < low:
        return f"{what} is {size}, below {low}"
    if high is not None and size > high:
        return f"{what} is {size}, above {high}"
    return ""


def read_reply(text: str, schema: Schema | None) -> tuple[Any, str]:
    """(the value, what is wrong with it). Without a schema the text itself is the value; a fence
    around JSON is taken off, as many models put one there."""
    if schema is None:
        return (text, "") if text.strip() else (None, "the reply is empty")
    fenced = _FENCE.match(text.strip())
    try:
        value = json.loads(fenced[1] if fenced else text)
    except ValueError:
        return None, "the reply is not JSON"
    found = fault(value, schema)
    return (None, f"wrong schema: {found}") if found else (value, "")
