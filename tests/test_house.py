"""The house rules of docs/architecture.md, as far as a program can see them."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: the sandbox empties its environment; torchrun says in it which attempt this is
ENVIRONMENT = ("verify/inside/server.py", "train/parallel.py")
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_a_file_is_one_idea(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 500
    tree = ast.parse("\n".join(lines))
    assert ast.get_docstring(tree), "say in a docstring what the file is"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_nothing_is_unpickled_and_no_environment_variable_is_read(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {a.name for a in node.names} & {"pickle", "dill", "cloudpickle", "joblib"}
        if isinstance(node, ast.ImportFrom):
            assert node.module not in ("pickle", "dill", "cloudpickle", "joblib")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in (("torch", "load"), ("os", "getenv"))
            if (node.value.id, node.attr) == ("os", "environ"):
                assert path.relative_to(ROOT / "src/phikit").as_posix() in ENVIRONMENT


def test_importing_a_package_does_nothing() -> None:
    """An `__init__` that imports would make every import heavy, and cycles possible."""
    for path in (ROOT / "src" / "phikit").rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = getattr(node, "module", None) or node.names[0].name
                assert names.split(".")[0] in {"__future__", "typing"}, path
            elif isinstance(node, ast.If):
                assert ast.unparse(node.test) == "TYPE_CHECKING", path
            else:
                assert isinstance(node, ast.Expr | ast.Assign | ast.FunctionDef), path


def test_no_large_file_is_tracked() -> None:
    large = [p.name for p in tracked() if p.is_file() and p.stat().st_size > 2**20]
    assert not large


def test_folders_import_only_those_above_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_reading_and_checking_a_recipe_needs_no_torch() -> None:
    code = "import sys, phikit.run, phikit.summary, phikit.recipes.load as l; l.load('nano'); "
    code += "print(sorted({'torch', 'transformers', 'matplotlib', 'sympy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_architecture_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "draw_architecture.py"), "--check"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_dependency_has_a_lower_bound_and_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in constraints if line and line[0] != "#")
    for requirement in declared:
        name, _, bound = requirement.partition(">=")
        normal = re.sub(r"[-_.]+", "-", name).lower()
        assert normal in tested, f"{name} is not in constraints.txt"
        if bound:
            assert _parts(tested[normal]) >= _parts(bound), requirement


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])
