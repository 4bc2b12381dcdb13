"""YAML that remembers where everything stood, so that an error can name the file and the line.

The scalars are those of YAML 1.2's core schema: `3e-4` is a number (PyYAML alone reads it as
text), and `no` and `on` are words.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

import yaml

from phikit.errors import PhikitError

#: Where in a document: ("stages", 3, "config", "lr")
Path = tuple[Hashable, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema's scalars."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (PyYAML's own protocol)


for _tag, _pattern, _first in (
    ("bool", r"true|True|false|False", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
     "-+.0123456789"),
    ("null", r"~|null|Null|", "~nN\0"),
):  # fmt: skip
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(f"^(?:{_pattern})$"),
        [*_first.rstrip("\0"), *([""] if "\0" in _first else [])],
    )


# in YAML 1.1 a leading 0 means octal
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(str(node.value).replace("_", ""))
)


class Places:
    """What stood where: a path in the document → "file:line", or the option that set it."""

    def __init__(self) -> None:
        self._places: dict[Path, str] = {}

    def put(self, path: Path, place: str) -> None:
        """Notes where the value at a path stood, in the words that errors use."""
        self._places[path] = place

    def of(self, path: Path) -> str:
        """The place of the path, or of the nearest thing around it."""
        while path and path not in self._places:
            path = path[:-1]
        return self._places.get(path, "")


def read(text: str, name: str) -> tuple[Any, Places]:
    """Parses a YAML document.

    Args:
        text: the document.
        name: what to call the file in errors.

    Raises:
        PhikitError: it is not YAML, or a key occurs twice; names the line.
    """
    places = Places()
    places.put((), f"{name}:1")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return _build(loader, node, (), name, places) if node is not None else None, places
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise PhikitError(f"{name}:{line}: not valid YAML: {e.problem}") from e
    finally:
        loader.dispose()


def scalar(text: str, name: str) -> Any:
    """Reads a value given on the command line as YAML would: numbers, lists, words."""
    return read(text, name)[0]


def put(
    config: Any, path: Path, key: Sequence[str], value: Any, places: Places, place: str
) -> None:
    """Writes `value` at the dotted `key` inside a mapping that stands at `path`.

    Raises:
        PhikitError: on the way there is something other than a mapping.
    """
    for part in key[:-1]:
        path = (*path, part)
        config = config.setdefault(part, {})
        if not isinstance(config, dict):
            raise PhikitError(f"{place}: {part!r} is {config!r}, which has no keys inside it")
    config[key[-1]] = value
    places.put((*path, key[-1]), place)


def _build(loader: _Loader, node: yaml.Node, path: Path, name: str, places: Places) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_entry(loader, n, n, (*path, i), name, places) for i, n in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        built: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise PhikitError(f"{name}:{_line(key_node)}: a key must be a word")
            if key in built:
                raise PhikitError(
                    f"{name}:{_line(key_node)}: the key {key!r} occurs twice",
                    f"the first is at {places.of((*path, key))}; keep one of them",
                )
            built[key] = _entry(loader, key_node, value_node, (*path, key), name, places)
        return built
    return loader.construct_object(node, deep=True)


def _entry(
    loader: _Loader, mark: yaml.Node, value: yaml.Node, path: Path, name: str, places: Places
) -> Any:
    places.put(path, f"{name}:{_line(mark)}")
    return _build(loader, value, path, name, places)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
