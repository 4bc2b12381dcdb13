"""Several processes under torchrun: the same losses as one, from any checkpoint, through deaths."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from train_fixtures import SPECIAL, write_shards
from train_runs import run

from phikit.chat.tokenizer import train_bpe
from phikit.stage import Context

HERE = Path(__file__).parent
RUNS = HERE / "train_runs.py"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{HERE}:{HERE.parents[1] / 'src'}", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def torchrun(processes: int, *arguments: object, restarts: int = 0) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        processes, "--max-restarts", restarts, "--monitor-interval", 0.1, *arguments,
    ]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]
    return out


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance", "numbers"),
    # Muon turns matrices in bfloat16, where the last bit of a gradient is soon seen
    [("adamw", 1e-6, (1, 4)), ("muon", 1e-4, (1,))],
)
def test_a_checkpoint_of_two_goes_on_in_any_number(
    name: str, tolerance: float, numbers: tuple[int, ...], tmp_path: Path
) -> None:
    two, whole = tmp_path / "two", tmp_path / "whole"
    two.mkdir(), whole.mkdir()
    finished(torchrun(2, RUNS, name, two, 7))  # stops after step 7; its checkpoint is step 6's
    assert len(list((two / "checkpoints" / "step-00000006").glob("shard-*"))) == 2
    run(name, Context(whole))
    assert len(losses(whole)) == 12
    for number in numbers:
        folder = tmp_path / str(number)
        shutil.copytree(two, folder)
        if number > 1:
            finished(torchrun(number, RUNS, name, folder))
        else:
            run(name, Context(folder))
        assert losses(folder) == pytest.approx(losses(whole), abs=tolerance)


@pytest.mark.slow
def test_a_stage_from_the_command_line_outlives_a_worker(tmp_path: Path) -> None:
    """`torchrun -m phikit train`: one of two workers is killed, the training goes on."""
    start, out = tmp_path / "start", tmp_path / "out"
    texts = [f"{i} and {i} are {2 * i}." for i in range(200)]
    tokenizer = train_bpe(texts, 300, SPECIAL)
    tokenizer.save(start / "tokenizer")
    write_shards(start, [tokenizer.encode(t) for t in texts])
    settings = (
        "steps=60", "checkpoint_every=5", "precision=f32", "context=32", "batch_rows=8",
        "model.hidden_size=32", "model.layers=2",
    )  # fmt: skip
    arguments = [
        "-m", "phikit", "train", "pretrain", "--input", f"shards={start}", "--input",
        f"tokenizer={start}", *(x for s in settings for x in ("--set", s)), "--threads", 1,
        "--out", out,
    ]  # fmt: skip
    # one restart is needed; on a busy machine the workers may miss one another at the first
    process = torchrun(2, *arguments, restarts=3)
    until = time.monotonic() + 200
    while len(list(out.glob("checkpoints/step-*"))) == 0:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    victim = workers(process.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    finished(process)
    assert len(losses(out)) == 60
    assert json.loads((out / "stage.json").read_text())["summary"]["steps"] == 60
    alone = tmp_path / "alone"
    done = subprocess.run(
        [sys.executable, *map(str, arguments[:-1]), str(alone)], env=ENVIRONMENT, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)


def workers(agent: int) -> list[int]:
    """The processes that torchrun's agent started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(rest[1]) == agent:
            found.append(int(pid))
    return sorted(found)
