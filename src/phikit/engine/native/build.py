"""The C kernels as a loaded library: compiled on first use into the user's cache, never at import.

The file's name is a hash of the sources, the compiler, its flags and the processor, so a changed
source or another machine makes another file, and an unchanged one compiles once. Without a compiler
there is no library; callers then use torch's own kernels, and that is said once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from phikit.errors import PhikitError

FOLDER = Path(__file__).parent
# -fno-math-errno and -fno-trapping-math let loops become vector code and change no result
_FLAGS = (
    "-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-Wall", "-Wextra",
)  # fmt: skip
_log = logging.getLogger("phikit")


class Matrix(ctypes.Structure):
    """`Matrix` of common.h."""

    _fields_ = (
        *((n, ctypes.c_int32) for n in ("kind", "n", "k", "group", "scale_groups", "padding")),
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Compiler:
    """How to compile. `portable` leaves the processor's special instructions out."""

    program: str = "cc"
    portable: bool = False
    folder: Path | None = None  # where the library goes; the user's cache when left out

    @property
    def flags(self) -> tuple[str, ...]:
        arm = platform.machine() in ("arm64", "aarch64")
        native = ("-mcpu=native",) if arm else ("-march=native",)
        return (*_FLAGS, *native, *(("-DPHIKIT_PORTABLE",) if self.portable else ()))


@dataclass(frozen=True)
class Sources:
    """The files of one library; headers are looked for beside this module."""

    name: str
    files: tuple[Path, ...]
    headers: tuple[Path, ...]


ENGINE = Sources(
    "kernels",
    tuple(
        FOLDER / name
        for name in (
            "team.c", "products.c", "rows.c", "step.c", "between.c", "wide.c", "cache8.c",
            "differ.c", "differ8.c", "mamba.c", "norms.c",
        )
    ),
    tuple(FOLDER / name for name in ("common.h", "decode.h", "differ.h")),
)  # fmt: skip


def _processor() -> str:
    """What tells one processor from another, for code compiled for this one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = [x for x in lines if x.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(told))])


def _target(compiler: Compiler, sources: Sources) -> Path:
    key = hashlib.blake2b(digest_size=8)
    for file in (*sources.headers, *sources.files):
        key.update(file.read_bytes())
    key.update("\0".join((compiler.program, *compiler.flags, _processor())).encode())
    folder = compiler.folder or Path.home() / ".cache" / "phikit" / "native"
    return folder / f"{sources.name}-{key.hexdigest()}.so"


def compiled(compiler: Compiler, sources: Sources = ENGINE) -> Path:
    """The library's file, compiled when it is not there yet.

    Raises:
        PhikitError: there is no such compiler, or it fails; says what it said.
    """
    target = _target(compiler, sources)
    if target.exists():
        return target
    program = shutil.which(compiler.program)
    if program is None:
        raise PhikitError(
            f"there is no C compiler {compiler.program!r} on this machine",
            "install one (Debian: apt install gcc)",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the finished file takes its name in one step
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            done = subprocess.run(
                [program, *compiler.flags, "-I", str(FOLDER), *map(str, sources.files),
                 "-o", str(made), "-lm"],
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if done.returncode:
                raise PhikitError(f"{program} cannot compile the kernels: {done.stderr[-800:]}")
            made.replace(target)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise PhikitError(f"the kernels cannot be compiled into {target.parent}: {e}") from e
    return target


def loaded(compiler: Compiler, sources: Sources) -> ctypes.CDLL:
    """The compiled library. Calls let other Python threads run.

    Raises:
        PhikitError: it cannot be compiled or loaded.
    """
    path = compiled(compiler, sources)
    try:
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise PhikitError(f"{path} cannot be loaded: {e}", "delete it") from e


def open_library(compiler: Compiler) -> ctypes.CDLL:
    """The engine's library, its functions typed.

    Raises:
        PhikitError: it cannot be compiled or loaded.
    """
    library = loaded(compiler, ENGINE)
    matrix, pointer, number = ctypes.POINTER(Matrix), ctypes.c_void_p, ctypes.c_int
    library.phikit_linear.argtypes = (matrix, pointer, number, number, pointer, number)
    library.phikit_rows.argtypes = (matrix, pointer, number, number, pointer, number)
    library.phikit_unpack.argtypes = (matrix, pointer, ctypes.c_int64, number)
    library.phikit_unpack.restype = None
    library.phikit_step.argtypes = (*(pointer,) * 6, number, pointer, number)
    library.phikit_attend_cache8.argtypes = (*(pointer,) * 7, number, number)
    for kind in ("rows", "wide"):
        getattr(library, f"phikit_norm_{kind}").argtypes = (
            *(pointer,) * 4, number, number, ctypes.c_float, number
        )  # fmt: skip
        getattr(library, f"phikit_gate_{kind}").argtypes = (pointer, pointer, *(number,) * 3)
        getattr(library, f"phikit_attend_{kind}").argtypes = (*(pointer,) * 7, number, number)
    library.phikit_differ_rows.argtypes = (*(pointer,) * 6, number, number)
    library.phikit_differ_rows_8.argtypes = library.phikit_differ_rows.argtypes
    library.phikit_mamba_convolve.argtypes = (*(pointer,) * 6, number, number)
    library.phikit_mamba_scan.argtypes = (
        *(pointer,) * 5, number, pointer, pointer, number, number
    )  # fmt: skip
    library.phikit_layer_norm_rows.argtypes = (*(pointer,) * 5, number, number, ctypes.c_float)
    for name in ("layer_norm_rows", "differ_rows", "differ_rows_8", "mamba_convolve", "mamba_scan"):
        getattr(library, f"phikit_{name}").restype = None
    return library


@functools.cache
def library(compiler: Compiler = Compiler()) -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be had; the reason is logged once."""
    try:
        return open_library(compiler)
    except PhikitError as e:
        _log.warning("decoding uses torch's kernels, which are slower: %s", e)
        return None
