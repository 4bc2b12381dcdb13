"""The hints at the end of an error: what to install, and which name was meant."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from phikit import errors
from phikit.errors import did_you_mean, how_to_install

ROOT = Path(__file__).parent.parent


def test_in_a_clone_the_hint_installs_the_clone() -> None:
    assert shlex.split(how_to_install("data")) == ["pip", "install", "-e", f"{ROOT}[data]"]


def test_a_clone_in_a_folder_with_a_strange_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "Ada's models"
    monkeypatch.setattr(errors, "__file__", str(clone / "src" / "phikit" / "errors.py"))
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    assert shlex.split(how_to_install("hub"))[-1] == f"{clone}[hub]"


def test_among_installed_packages_the_hint_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "python3" / "site-packages" / "phikit" / "errors.py"
    monkeypatch.setattr(errors, "__file__", str(file))
    assert how_to_install("hub") == "pip install 'phikit[hub]'"


def test_every_extra_that_an_error_names_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    named = {extra for text in sources for extra in re.findall(r'how_to_install\("(\w+)"\)', text)}
    assert "data" in named
    assert named <= declared["optional-dependencies"].keys()


def test_no_source_spells_the_command_itself() -> None:
    others = [p for p in (ROOT / "src").rglob("*.py") if p.name != "errors.py"]
    assert not [p for p in others if "pip install 'phikit[" in p.read_text()]


def test_a_near_name_is_asked_about() -> None:
    assert did_you_mean("mehtod", ["method", "other"]) == "did you mean 'method'?"


def test_a_short_list_is_shown_whole_and_in_order() -> None:
    assert did_you_mean("xyz", ["b", "a"], "phikit synth list") == "known: a, b"


def test_of_a_long_list_the_nearest_few_are_shown_and_the_command_that_lists_them() -> None:
    names = [f"kind-{n}" for n in range(30)] + ["quartz"]
    hint = did_you_mean("zq", names, "phikit synth list")
    assert hint == "`phikit synth list` lists all 31; the nearest: quartz"
    hint = did_you_mean("kite", names, "phikit synth list")
    assert len(hint.split(", ")) == 5
    hint = did_you_mean("xyy", names, "phikit synth list")
    assert hint == "`phikit synth list` lists all 31"
    assert did_you_mean("xyy", names).count(",") == 30, "nothing else lists them"
