"""The whole system, killed: the real `smoke` recipe ends bit-identical whenever it is stopped."""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
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


def finish(out: Path) -> None:
    """Runs to the end."""
    process = smoke(out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


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


@dataclass
class Demo:
    """A copy of the sources with this environment as its own, in which `make demo` has run."""

    root: Path
    shown: str
    seconds: float

    def make(self) -> subprocess.CompletedProcess[str]:
        command = ["make", "demo", "RECIPE=smoke"]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    sources, root = Path(__file__).parent.parent.parent, tmp_path_factory.mktemp("demo")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(sources / name, root / name)
    scripts = root / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "phikit").write_text(f'#!/bin/sh\nexec {sys.executable} -m phikit "$@"\n')
    (scripts / "phikit").chmod(0o755)
    (root / ".venv" / ".done").touch()  # newer than the files it is made from
    demo, begun = Demo(root, "", 0.0), time.perf_counter()
    done = demo.make()
    assert done.returncode == 0, done.stderr
    return Demo(root, done.stdout, time.perf_counter() - begun)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smoke_killed_at_random_instants_ends_bit_identical(tmp_path: Path, demo: Demo) -> None:
    whole, broken = demo.root / "runs" / "smoke", tmp_path / "broken"
    took = {record["name"]: record["cost"]["seconds"] for _, record in ledger.stages(whole)}
    dice = random.Random(1)
    for stage in AIMS:
        if stage == ANYWHERE:
            kill_in(broken, stage, dice.random() * demo.seconds / len(AIMS))
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
def test_a_second_make_demo_does_nothing_and_what_it_made_answers(demo: Demo) -> None:
    assert (demo.root / "runs/smoke/report.html").stat().st_size > 10_000
    begun = time.perf_counter()
    second = demo.make()
    assert time.perf_counter() - begun < 20
    assert "✓" not in second.stdout
    assert second.stdout.split("\n\n", 1)[-1] == demo.shown[demo.shown.index("\nstage") + 1 :]
    reply = subprocess.run(
        [str(demo.root / ".venv/bin/phikit"), "chat", "runs/smoke", "-p", "What is 2 + 3?"],
        cwd=demo.root, capture_output=True, text=True,
    )  # fmt: skip
    assert reply.returncode == 0, reply.stderr
    assert reply.stdout.strip()
