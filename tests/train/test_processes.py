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
import torch
from train_fixtures import SPECIAL, TINY, tiny_model, write_shards
from train_runs import run

from phikit.chat.tokenizer import train_bpe
from phikit.errors import PhikitError
from phikit.stage import Context
from phikit.train.parallel import Processes
from phikit.train.settings import ParallelSettings
from phikit.train.tensors import Relaid, check, order

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
    # the cause comes first, from the process that failed; what the others say of it follows
    assert process.returncode == 0, out
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
@pytest.mark.parametrize(
    ("name", "processes", "tensor", "context"),
    [
        ("adamw", 2, 2, 1),
        ("bf16", 2, 2, 1),  # the kernels take addresses of what other processes add up
        ("bf16", 2, 1, 2),
        ("dpo", 2, 1, 2),
        ("grpo", 2, 1, 1),  # answers are drawn from the weights that both hold slices of
        ("adamw", 4, 2, 1),  # × 2 that share the microbatches
        ("four", 4, 2, 2),  # four key-value heads
    ],
)
def test_shared_matrices_and_rows_change_no_loss(
    name: str, processes: int, tensor: int, context: int, tmp_path: Path
) -> None:
    shared, whole = tmp_path / "shared", tmp_path / "whole"
    shared.mkdir(), whole.mkdir()
    near = 5e-3 if name == "bf16" else 1e-5  # products are rounded where they are cut
    stop = 3 if name == "grpo" else 7
    finished(torchrun(processes, RUNS, name, shared, stop, tensor, context))
    run(name, Context(whole))
    assert losses(shared) == pytest.approx(losses(whole)[: len(losses(shared))], abs=near)
    run(name, Context(shared))  # one process goes on from what they wrote
    assert losses(shared) == pytest.approx(losses(whole), abs=near)


@pytest.mark.parametrize("ways", [1, 2, 3])
def test_fused_rows_are_shared_part_by_part_and_put_back(ways: int) -> None:
    rows = order((12, 6, 6), ways)
    for chunk in rows.chunk(ways):
        assert [int(((chunk >= a) & (chunk < b)).sum()) for a, b in ((0, 12), (12, 18), (18, 24))] \
            == [12 // ways, 6 // ways, 6 // ways]  # fmt: skip
    x = torch.randn(24, 3)
    there, back = (Relaid({"qkv": (12, 6, 6)}, *way) for way in ((1, ways), (ways, 1)))
    assert torch.equal(there("model.qkv", x), x[rows])
    assert torch.equal(back("model.qkv", there("model.qkv", x)), x)
    assert torch.equal(there("model.other", x), x)


@pytest.mark.parametrize(
    ("tensor", "context", "said"), [(4, 1, "key-value heads"), (1, 3, "heads"), (2, 1, "by data")]
)
def test_what_cannot_be_shared_is_said_before_training(
    tensor: int, context: int, said: str
) -> None:
    with pytest.raises(PhikitError, match=said):
        check(TINY, tensor, context, slices=3 if said == "by data" else 1)
    with pytest.raises(PhikitError, match="torchrun --nproc-per-node"):
        Processes.of(tiny_model(), ParallelSettings(tensor=tensor, context=context))


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
    process = torchrun(2, *arguments, restarts=1)
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
