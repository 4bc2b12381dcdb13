"""How much memory a piece of work took at its peak, and how freed memory is kept for reuse, and
given back after all."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

_SELF = Path("/proc/self")


class PeakMemory:
    """Measures the peak resident memory of what runs inside its `with` block.

    Linux keeps the peak itself and lets a process reset its own (write 5 to clear_refs, see
    proc(5)); where that is forbidden a thread samples the resident size ten times a second.
    Elsewhere than on Linux the peak is unknown and `bytes` stays 0.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._exact = False
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        try:
            (_SELF / "clear_refs").write_text("5")
            self._exact = True
        except OSError:
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._exact:
            self.bytes = _status("VmHWM")
        elif self._sampler is not None:
            self._stop.set()
            self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.bytes = max(self.bytes, _status("VmRSS"))
            if self._stop.wait(0.1):
                return


def keep_freed_memory() -> None:
    """Keeps freed blocks in the process instead of handing them back to the kernel, in large pages.

    Training frees and allocates the same large tensors at every step. By default glibc maps each
    one anew, and the kernel clears its pages; with two threads doing so at once a step of a small
    model takes half as long again. In pages of 4 KiB a matrix is spread over hundreds of them, and
    products wait for the processor to find where they are. Elsewhere than on glibc nothing is
    changed.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)  # never
        _grow_in_large_pages()


def _grow_in_large_pages() -> None:
    """Reserves addresses behind the heap, half as many as there is memory, for which the kernel is
    to take large pages when they are first touched. Where it refuses, pages stay small. Where it
    counts addresses as memory (`vm.overcommit_memory` 2, proc(5)) it is not asked."""
    counted = Path("/proc/sys/vm/overcommit_memory")
    if counted.exists() and counted.read_text().strip() == "2":
        return
    malloc, free, madvise = (_of_glibc(name) for name in ("malloc", "free", "madvise"))
    malloc.restype, malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    free.restype, free.argtypes = None, (ctypes.c_void_p,)
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    page, size = mmap.PAGESIZE, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2
    block = malloc(size)
    if block is not None:
        start = -(-block // page) * page
        madvise(start, (block + size - start) // page * page, mmap.MADV_HUGEPAGE)
        free(block)


def give_back_freed_memory() -> None:
    """Hands kept blocks back to the kernel: after a stage, the next one's are of other sizes."""
    gc.collect()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function of its allocator; None elsewhere than on glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def _status(key: str) -> int:
    """A size from /proc/self/status in bytes; 0 where there is no such file."""
    try:
        lines = (_SELF / "status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0
