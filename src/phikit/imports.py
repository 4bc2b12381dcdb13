"""phikit's import graph, read from its sources without importing them.

Two things rest on it. A stage's *code version* is the hash of every module that its own module can
reach, so a change of the code re-runs exactly what it may have changed; and the picture in
docs/architecture.md is drawn from it. Comments, docstrings and layout do not count as code.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError
from phikit.files import canonical_json

PACKAGE = "phikit"


@dataclass(frozen=True)
class Module:
    """One source file: the hash of its code, and what it imports, also inside functions."""

    name: str
    path: Path
    digest: str
    internal: frozenset[str]
    external: frozenset[str]


class Sources:
    """The source files of the package under `root`, parsed when they are first asked for.

    Args:
        root: the folder of the package `phikit` itself.
        cache: parsed files by the hash of their text, as `cached` gave it in an earlier process.
    """

    def __init__(self, root: Path | None = None, cache: Mapping[str, Any] | None = None) -> None:
        self.root = root or Path(__file__).parent
        self._cache = dict(cache or {})
        self._modules: dict[str, Module] = {}
        self._used: set[str] = set()

    @property
    def cached(self) -> dict[str, Any]:
        """What a later process can be given as `cache`; only files in use are kept."""
        return {key: value for key, value in self._cache.items() if key in self._used}

    def module(self, name: str) -> Module:
        """The module of that dotted name; outside the package, one that is already imported.

        Raises:
            PhikitError: it has no source file, so its version cannot be known.
        """
        if name not in self._modules:
            path = self._path(name) or _imported_path(name)
            if path is None:
                raise PhikitError(f"the module {name!r} has no source file to take a version from")
            self._modules[name] = self._parse(name, path)
        return self._modules[name]

    def names(self) -> list[str]:
        """Every module of the package, sorted."""
        found = []
        for file in self.root.rglob("*.py"):
            parts = file.relative_to(self.root).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found.append(".".join((PACKAGE, *parts)))
        return sorted(found)

    def reach(self, start: Iterable[str]) -> list[Module]:
        """The modules that `start` can reach by imports, itself included, sorted by name."""
        seen: dict[str, Module] = {}
        waiting = list(start)
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen[name] = self.module(name)
                waiting.extend(seen[name].internal)
        return [seen[name] for name in sorted(seen)]

    def version(self, start: Iterable[str]) -> str:
        """Hash over the code, and over the data files beside it, that `start` can reach."""
        modules = self.reach(start)
        content = [(m.name, m.digest) for m in modules]
        for folder in sorted({m.path.parent for m in modules if m.path.is_relative_to(self.root)}):
            content += [(str(f.relative_to(self.root)), _sha(f)) for f in _data_files(folder)]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]

    def uses(self, start: Iterable[str], library: str) -> bool:
        """Whether `start` can reach an import of another distribution's package."""
        return any(library in module.external for module in self.reach(start))

    def _path(self, name: str) -> Path | None:
        parts = name.split(".")
        if parts[0] != PACKAGE:
            return None
        base = self.root.joinpath(*parts[1:])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
        return None

    def _parse(self, name: str, path: Path) -> Module:
        data = path.read_bytes()
        key = hashlib.sha256(f"{sys.version_info[:2]} {name} ".encode() + data).hexdigest()
        self._used.add(key)
        if key not in self._cache:
            tree = without_docstrings(ast.parse(data, filename=str(path)))
            internal, external = self._imports(name, tree, is_package=path.name == "__init__.py")
            self._cache[key] = {
                "digest": hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16],
                "internal": sorted(internal),
                "external": sorted(external),
            }
        found = self._cache[key]
        return Module(
            name, path, found["digest"], frozenset(found["internal"]), frozenset(found["external"])
        )

    def _imports(self, name: str, tree: ast.Module, is_package: bool) -> tuple[set[str], set[str]]:
        """What a module imports, from the package and from elsewhere, by statement or by name.

        Packages above a module are left out: an `__init__` of phikit does nothing by itself.
        """
        internal: set[str] = set()
        external: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(name, node, is_package)
                targets = [f"{base}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                internal |= self._named(name, node.value)
                continue
            else:
                continue
            for target in targets:
                if target.split(".")[0] != PACKAGE:
                    external.add(target.split(".")[0])
                    continue
                # "from phikit.files import write_json" names a module and something in it
                while self._path(target) is None:
                    target = target.rpartition(".")[0]
                internal.add(target)
        return internal, external

    def _named(self, name: str, text: str) -> set[str]:
        """Modules that a string names, to be imported or started later.

        "phikit.verify.math" is that module; "phikit.verify." (the fixed part of an f-string) is
        every module there; "worker.py" is the file of that name beside the module.
        """
        if re.fullmatch(r"(?!__init__)\w+\.py", text):
            beside = f"{name.rpartition('.')[0]}.{text.removesuffix('.py')}"
            return {beside} if self._path(beside) else set()
        found = set()
        for word in re.findall(rf"\b{PACKAGE}(?:\.\w+)+\.?", text):
            if word.endswith("."):
                package = self.root.joinpath(*word.split(".")[1:-1])
                found |= {word + file.stem for file in package.glob("*.py")} - {word + "__init__"}
            elif self._path(word):
                found.add(word)
        return found


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The same tree, changed in place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:]
    return tree


def _absolute(name: str, node: ast.ImportFrom, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def _imported_path(name: str) -> Path | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file) if file else None


def _data_files(folder: Path) -> list[Path]:
    """Files of a package that are not Python (its templates, its YAML), subfolders included."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name != "__pycache__" and not (path / "__init__.py").exists():
                found += _data_files(path)
        elif path.suffix not in (".py", ".pyc"):
            found.append(path)
    return found


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
