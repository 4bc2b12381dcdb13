import ast
import json
from collections import Counter
from itertools import islice

import pytest

from phikit.data.readers import Broken, ReaderConfig, read, read_stdlib
from phikit.errors import PhikitError
from phikit.records import Document

MODULE = '''"""Adds numbers.

This module adds numbers, slowly.
"""

def add(a, b):
    """Add two numbers."""
    return a + b


class Adder:
    @property
    def method(self):
        """Say
        what it is."""
        text = """
outdented"""
        return text
'''


def documents(folder, **settings) -> tuple[list[Document], list[Broken]]:
    found = list(read(ReaderConfig(root=str(folder), **settings)))
    return (
        [d for d in found if isinstance(d, Document)],
        [b for b in found if isinstance(b, Broken)],
    )


def test_broken_files_are_set_aside_and_the_rest_is_read(tmp_path) -> None:
    (tmp_path / "good.py").write_text(MODULE)
    (tmp_path / "syntax.py").write_text("def broken(:\n")
    (tmp_path / "cookie.py").write_text("# coding: no-such-encoding\nx = 1\n")
    (tmp_path / "bytes.py").write_bytes(b"# coding: utf-8\nx = '\xff'\n")
    (tmp_path / "null.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "large.txt").write_text("x" * 5000 + "é")
    (tmp_path / "notes.md").write_text("Some notes.")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    kept, broken = documents(tmp_path, max_file_bytes=12_000)
    assert {b.name for b in broken} == {
        "syntax.py", "cookie.py", "bytes.py", "null.py", "deep.py", "latin.txt",
    }  # fmt: skip
    reasons = {b.name: b.reason for b in broken}
    assert reasons["syntax.py"] == "syntax error"
    assert reasons["cookie.py"] == reasons["bytes.py"] == reasons["latin.txt"] == "bad encoding"
    assert {d.meta["path"] for d in kept} == {"good.py", "notes.md", "large.txt"}
    _, broken = documents(tmp_path, max_file_bytes=4000)
    assert {b.name for b in broken if b.reason == "file too large"} == {"large.txt", "deep.py"}


def test_python_is_read_in_its_declared_encoding(tmp_path) -> None:
    text = "# coding: latin-1\nname = 'café'\n" * 3
    (tmp_path / "latin.py").write_bytes(text.encode("latin-1"))
    kept, _ = documents(tmp_path)
    assert [d.text for d in kept] == [text]


def test_a_short_module_stays_whole_and_a_long_one_is_cut(tmp_path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "mod.py").write_text(MODULE)
    kept, _ = documents(tmp_path)
    code = [d for d in kept if d.source == "code"]
    assert [(d.text, d.meta["kind"], d.meta["name"]) for d in code] == [
        (MODULE, "module", "pkg.mod")
    ]
    prose = [d for d in kept if d.source == "web"]
    assert prose[0].text == "pkg.mod\n\nAdds numbers.\n\nThis module adds numbers, slowly.\n"

    kept, _ = documents(tmp_path, split_chars=60)
    code = [d for d in kept if d.source == "code"]
    assert [(d.meta["kind"], d.meta["name"]) for d in code] == [
        ("function", "add"),
        ("method", "Adder.method"),
    ]
    assert code[0].text.startswith("def add(a, b):\n")
    assert code[0].meta["doc"] == "Add two numbers."
    assert code[1].text.startswith("@property\ndef method(self):\n    ")
    assert code[1].meta["doc"] == "Say\nwhat it is."
    for document in code:
        ast.parse(document.text)


def test_form_feeds_do_not_shift_the_lines(tmp_path) -> None:
    (tmp_path / "m.py").write_text("x = 1\n\x0c\ndef f():\n    return 1\n")
    kept, _ = documents(tmp_path, split_chars=5)
    assert [d.text for d in kept] == ["def f():\n    return 1\n"]


def test_json_lines_are_set_aside_one_by_one(tmp_path) -> None:
    rows = [
        json.dumps({"text": "one", "source": "code", "licence": "MIT", "meta": {"k": 1}}),
        "{not json",
        json.dumps({"no_text": 1}),
        json.dumps({"text": 5}),
        '{"text": "\\ud800"}',
        json.dumps({"text": "two " * 1000}),
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    kept, broken = documents(tmp_path, licence="own")
    assert [b.name for b in broken] == [f"rows.jsonl:{n}" for n in (2, 3, 4, 5)]
    assert [(d.text[:3], d.source, d.licence) for d in kept] == [
        ("one", "code", "MIT"),
        ("two", "acquired", "own"),
    ]
    assert kept[0].meta["k"] == 1


def test_the_order_does_not_depend_on_the_file_system(tmp_path) -> None:
    orders = []
    for run, names in enumerate([list(range(20)), list(reversed(range(20)))]):
        folder = tmp_path / str(run)
        folder.mkdir()
        for n in names:
            (folder / f"{n}.txt").write_text(f"text {n}")
        orders.append([d.text for d in documents(folder)[0]])
    assert orders[0] == orders[1]


def test_a_missing_folder_is_explained() -> None:
    with pytest.raises(PhikitError, match="is no folder"):
        list(read(ReaderConfig(root="/no/such/folder")))


def test_the_library_plays_every_organic_class(tmp_path) -> None:
    """A stand-in with the library's layout."""
    (tmp_path / "pydoc_data").mkdir()
    topics = {"if": "The if statement is used.", "types": "Long. " * 300}
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "bad.py").write_text("not python at all (")
    (tmp_path / "mod.py").write_text(MODULE)
    found = list(read_stdlib(tmp_path, ReaderConfig()))
    kinds = Counter((d.source, d.meta["kind"]) for d in found if isinstance(d, Document))
    assert kinds == {
        ("web", "topic"): 1,
        ("acquired", "topic"): 1,
        ("web", "module documentation"): 1,
        ("code", "module"): 1,
    }
    assert all(isinstance(d, Document) and d.licence == "PSF-2.0" for d in found)


def test_the_real_library_is_read_without_a_broken_file() -> None:
    found = list(islice(read(ReaderConfig()), 1500))
    assert all(isinstance(d, Document) for d in found)
    assert {d.source for d in found} == {"web", "acquired", "code"}
    functions = [d for d in found if d.meta["kind"] == "function"]
    assert functions
    for document in functions:
        ast.parse(document.text)
