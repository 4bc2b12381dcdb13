"""The whole system, killed: the real `smoke` recipe ends bit-identical whenever it is stopped."""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phikit import ledger

#: Where each kill falls: in that stage, or at any instant of the run.
ANYWHERE = ""
AIMS = ("documents", ANYWHERE, "pretrain", "pivots", "dpo-judge", ANYWHERE, "grpo")
#: from the start of the process until the first stage can run, roughly
STARTUP = 2.0


def smoke(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "phikit", "run", "smoke", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(out: Path) -> float:
    """Runs to the end; returns how long that took."""
    begun = time.perf_counter()
    process = smoke(out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return time.perf_counter() - begun


def artefacts(out: Path) -> dict[str, str]:
    """Hash of every artefact of every stage: weights, shards, pairs, scores. Logs state times."""
    return {
        f"{folder.name}/{name}": recorded["sha256"]
        for folder, record in ledger.stages(out)
        for name, recorded in record["artefacts"].items()
        if name != "metrics.jsonl"
    }


def starts(out: Path, stage: str) -> int:
    """How often the ledger says that a stage was started."""
    ledger_file = out / "ledger.jsonl"
    if not ledger_file.exists():
        return 0
    return ledger_file.read_text().count(f'"event": "started", "stage": "{stage}"')


def cut_short(out: Path) -> str:
    """The stage that was running when the run was killed; "" if none was."""
    folders = sorted(out.glob("[0-9]*"))
    return next((f.name.partition("-")[2] for f in folders if not ledger.done(f)), "")


def kill_in(out: Path, stage: str, seconds: float) -> None:
    """Runs on, and kills so many seconds into a stage, or into the run."""
    before = starts(out, stage)
    process = smoke(out)
    if stage == ANYWHERE:
        time.sleep(STARTUP)
    else:
        while starts(out, stage) == before and process.poll() is None:
            time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()


def kill_surely_in(out: Path, stage: str, seconds: float) -> None:
    """As `kill_in`; a stage that was done before the kill is taken away and cut again, earlier."""
    for attempt in range(6):
        kill_in(out, stage, seconds / 2**attempt)
        if cut_short(out) == stage:
            return
        shutil.rmtree(next(f for f in out.glob("[0-9]*") if f.name.partition("-")[2] == stage))
    pytest.fail(f"six kills did not fall into {stage}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smoke_killed_at_random_instants_ends_bit_identical(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    seconds = finish(whole)
    took = {record["name"]: record["cost"]["seconds"] for _, record in ledger.stages(whole)}
    dice = random.Random(1)
    for stage in AIMS:
        if stage == ANYWHERE:
            kill_in(broken, stage, dice.random() * seconds / len(AIMS))
        else:
            kill_surely_in(broken, stage, dice.random() * took[stage])
    finish(broken)
    expected, found = artefacts(whole), artefacts(broken)
    different = sorted(name for name in expected if found.get(name) != expected[name])
    assert not different
    assert found.keys() == expected.keys()
    weights = {name: sha for name, sha in expected.items() if name.endswith("model.safetensors")}
    assert len(weights) >= 8, "the recipe trains seven models and exports one"
    assert len(set(weights.values())) == len(weights), "a stage has changed nothing"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_make_demo_runs_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    """`make demo RECIPE=smoke` in a copy of the sources, with this environment as its own."""
    root = Path(__file__).parent.parent.parent
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path / name)
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "phikit").write_text(f'#!/bin/sh\nexec {sys.executable} -m phikit "$@"\n')
    (scripts / "phikit").chmod(0o755)
    (tmp_path / ".venv" / ".done").touch()  # newer than the files it is made from
    command = ["make", "demo", "RECIPE=smoke"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "runs/smoke/report.html").stat().st_size > 10_000
    begun = time.perf_counter()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert time.perf_counter() - begun < 20
    assert "✓" not in second.stdout
    assert second.stdout.split("\n\n", 1)[-1] == first.stdout[first.stdout.index("\nstage") + 1 :]
    reply = subprocess.run(
        [str(scripts / "phikit"), "chat", "runs/smoke", "-p", "What is 2 + 3?"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert reply.returncode == 0, reply.stderr
    assert reply.stdout.strip()
