"""Freed memory is kept while a stage runs, and given back after it."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from phikit.memory import give_back_freed_memory, keep_freed_memory

def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 >> 20

keep_freed_memory()
before = resident()
tensors = [torch.ones(2**20 + 977 * i) for i in range(100)]  # 400 MiB and more
stays = torch.ones(1000)  # a block at the heap's end
full = resident()
del tensors
kept = resident()
give_back_freed_memory()
print(before, full, kept, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_and_given_back() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, full, kept, after = map(int, ran.stdout.split())
    assert full > before + 400 and kept > before + 400
    assert after < before + 40
