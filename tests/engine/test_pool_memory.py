"""The cache's memory is touched where blocks are in use, whatever the process freed before."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from phikit.engine.pool import zeros
from phikit.memory import keep_freed_memory

def resident():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

keep_freed_memory()
for _ in range(3):
    stores = [zeros((2048, 2, 32, 64), torch.bfloat16, torch.device("cpu")) for _ in range(64)]
    stores[0][:2] = 1
    assert not stores[0][2:4].any() and stores[1].dtype == torch.bfloat16
    print(resident())
    del stores
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_second_pool_is_not_touched_whole() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sizes = [int(line) for line in done.stdout.split()]  # MiB; each pool may become 1024
    assert max(sizes) - sizes[0] < 64
