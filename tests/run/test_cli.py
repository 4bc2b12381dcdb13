"""The command line: what it prints, its exit status, and that errors are readable."""

import os
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

TIMEOUT = 300  # a busy machine is slow, not wrong


def phikit(*arguments: str, cwd: Path | None = None, stdin: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "phikit", *arguments], cwd=cwd, input=stdin,
        capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_command_and_an_example() -> None:
    status, out, _ = phikit("--help")
    assert status == 0
    for word in ("run", "chat", "report", "recipes", "data", "synth", "train", "pivots", "eval",
                 "export", "phikit run nano"):  # fmt: skip
        assert word in out


def test_the_version_is_that_of_the_package() -> None:
    status, out, _ = phikit("--version")
    assert (status, out) == (0, f"phikit {version('phikit')}\n")


def test_a_listing_cuts_no_command_s_purpose_short() -> None:
    for group in ((), ("data",), ("synth",), ("pivots",), ("recipes",)):
        lines = phikit(*group, "--help")[1].partition("Commands:\n")[2].splitlines()
        assert lines and not [line for line in lines if line.endswith("...")], group


def test_help_of_a_stage_shows_its_settings() -> None:
    status, out, _ = phikit("synth", "procedural", "--help")
    assert status == 0
    assert "refusal_share" in out and "0.05" in out and "must be declined" in out
    assert phikit("synth")[1].count("phikit synth ") >= 3


def test_one_stage_alone(tmp_path: Path) -> None:
    out = tmp_path / "items"
    arguments = ("synth", "items", "--set", "count=12", "--set", "recall_count=1",
                 "--set", "validators=false", "--out", str(out))  # fmt: skip
    status, shown, errors = phikit(*arguments)
    assert (status, errors) == (0, "")
    assert "synth.items" in shown
    assert (out / "items.parquet").exists() and (out / "stage.json").exists()
    status, _, errors = phikit(*arguments)
    assert status == 2
    assert "not empty" in errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "nanno"), "did you mean 'nano'?"),
        (("run", "missing.yaml"), "no such file"),
        (("synth", "itemz", "--out", "x"), "did you mean 'items'?"),
        (("synth", "items", "--set", "cuont=1", "--out", "x"), "did you mean 'count'?"),
        (("synth", "items", "--set", "count=few", "--out", "x"), "--set count=few: 'count'"),
        (("synth", "items", "--input", "a=b", "--out", "x"), "has no input 'a'"),
        (("synth", "procedural", "--input", "items=nowhere", "--out", "x"), "no such folder"),
        (("chat", "nowhere"), "no such file or directory, and no member of the family"),
        (("chat", "runs/nano"), "phikit run nano makes it"),
        (("report", "nowhere"), "error: no such file: nowhere"),
        (("train", "sft", "--set", "lr=1"), "--out is missing"),
    ],
)
def test_errors_are_plain(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    status, _, errors = phikit(*arguments, cwd=tmp_path)
    assert status == 2
    assert errors.startswith("error: ")
    assert expected in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "x").exists()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "phikit", "synth", "items", "--set", "count=1000000",
         "--set", "validators=false", "--out", str(tmp_path / "x")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()  # the stage has started
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert errors.strip() == "stopped; run the same command again to go on"


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """In under 0.3 s of processor time, the least of five tries."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "phikit", "--help"],
            capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "typer" in imported
        assert not imported & {"torch", "numpy", "pyarrow", "pydantic", "yaml", "rich", "sympy"}
    assert min(seconds) < 0.3
