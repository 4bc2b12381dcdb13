"""The whole system, killed: the real `smoke` recipe ends bit-identical whenever it is stopped."""

import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phikit import ledger

KILLS = 10
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smoke_killed_at_random_instants_ends_bit_identical(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    seconds = finish(whole)
    dice = random.Random(1)
    kills: list[str] = []
    while len(kills) < KILLS:
        process = smoke(broken)
        try:
            process.communicate(timeout=dice.uniform(STARTUP, STARTUP + 2 * seconds / KILLS))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            running = [f.name for f in broken.glob("[0-9]*") if not ledger.done(f)]
            kills.append(running[0] if running else "between stages")
            continue
        assert process.returncode == 0
        # it came to the end before the last kill: take a model away that much hangs on
        for name in ("06-pretrain", "15-sft", "29-grpo"):
            shutil.rmtree(broken / name)
    finish(broken)
    expected, found = artefacts(whole), artefacts(broken)
    different = sorted(name for name in expected if found.get(name) != expected[name])
    assert not different, f"killed in {kills}: these differ: {different}"
    assert found.keys() == expected.keys()
    weights = [name for name in expected if re.search(r"\.safetensors$", name)]
    assert len(weights) >= 7, "the recipe trains at least seven models"


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
