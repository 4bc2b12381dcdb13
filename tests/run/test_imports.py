"""The code version of a stage: what changes it, and what does not."""

from pathlib import Path

import pytest

from phikit.imports import Sources


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {
        "__init__.py": '"""The package."""',
        "low.py": "def low():\n    return 1\n",
        "other.py": "import torch\n",
        "a/__init__.py": "",
        "a/one.py": "from phikit.low import low\n\ndef one():\n    from phikit.a import two\n"
        "    return low() + two.TWO\n",
        "a/two.py": "from .three import THREE\nTWO = 2 + THREE\n",
        "a/three.py": "THREE = 3\n",
        "a/words/list.yaml": "- word\n",
        "b/__init__.py": "",
        "b/data.yaml": "x: 1\n",
    }
    for name, text in files.items():
        path = tmp_path / "phikit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "phikit"


def version(package: Path) -> str:
    return Sources(package).version(["phikit.a.one"])


def test_reach_follows_relative_and_late_imports(package: Path) -> None:
    reached = [m.name for m in Sources(package).reach(["phikit.a.one"])]
    assert reached == ["phikit.a.one", "phikit.a.three", "phikit.a.two", "phikit.low"]


def test_only_code_that_can_be_reached_counts(package: Path) -> None:
    before = version(package)
    (package / "other.py").write_text("import torch\nX = 1\n")
    (package / "b/data.yaml").write_text("x: 2\n")
    assert version(package) == before
    (package / "a/three.py").write_text("THREE = 4\n")
    assert version(package) != before


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = version(package)
    (package / "low.py").write_text('"""Low."""\n\n\ndef low():\n    "Low."\n    return 1  # one\n')
    assert version(package) == before


def test_data_files_beside_the_code_count(package: Path) -> None:
    before = version(package)
    (package / "a/words/list.yaml").write_text("- other\n")
    assert version(package) != before


def test_modules_named_in_strings_are_reached(package: Path) -> None:
    (package / "b/one.py").write_text(
        '"""See `phikit.other`."""\nimport importlib\n\n'
        'def get(n):\n    "Like phikit.other."\n    importlib.import_module(f"phikit.a.{n}")\n'
        '    return "worker.py", "from phikit.low import low\\n", "phikit run", "phikit.nothing"\n'
    )
    (package / "b/worker.py").write_text("X = 1\n")
    reached = {m.name for m in Sources(package).reach(["phikit.b.one"])}
    assert reached == {"phikit.b.one", "phikit.b.worker", "phikit.low", "phikit.a.one",
                       "phikit.a.two", "phikit.a.three"}  # fmt: skip


def test_which_code_needs_torch(package: Path) -> None:
    sources = Sources(package)
    assert not sources.uses(["phikit.a.one"], "torch")
    assert sources.uses(["phikit.other"], "torch")


def test_the_cache_changes_nothing_and_forgets_old_files(package: Path) -> None:
    first = Sources(package)
    before = first.version(["phikit.a.one"])
    second = Sources(package, first.cached)
    assert second.version(["phikit.a.one"]) == before
    assert second.cached == first.cached
    (package / "low.py").write_text("def low():\n    return 2\n")
    third = Sources(package, second.cached)
    assert third.version(["phikit.a.one"]) != before
    assert len(third.cached) == len(first.cached)


def test_the_package_itself() -> None:
    sources = Sources()
    assert "phikit.run" in sources.names()
    reached = {m.name for m in sources.reach(["phikit.recipes.load"])}
    assert {"phikit.errors", "phikit.stage", "phikit.recipes.schema"} <= reached
    assert "phikit.cli" not in reached
    verifying = {m.name for m in sources.reach(["phikit.verify.base"])}
    assert {"phikit.verify.math", "phikit.verify.math_worker", "phikit.verify.code",
            "phikit.verify.sandbox", "phikit.verify.inside.child"} <= verifying  # fmt: skip
