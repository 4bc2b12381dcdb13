"""C sources as a loaded library: compiled on first use into the user's cache, never at import.

The file's name is a hash of the sources, the compiler, its flags and the processor, so a changed
source or another machine makes another file, and an unchanged one compiles once.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from phikit.errors import PhikitError
from phikit.files import cache_folder

# -fno-math-errno and -fno-trapping-math let loops become vector code and change no result
_FLAGS = (
    "-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-Wall", "-Wextra",
)  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """C files that make one library; `headers` are those of its own that they include."""

    folder: Path
    name: str
    files: tuple[str, ...]
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compiler:
    """How to compile.

    Attributes:
        portable: leave the processor's special instructions out.
        tiles: use its matrix unit (AMX) where it has one.
        folder: where the library goes; the user's cache when left out.
    """

    program: str = "cc"
    portable: bool = False
    tiles: bool = True
    folder: Path | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        arm = platform.machine() in ("arm64", "aarch64")
        native = ("-mcpu=native",) if arm else ("-march=native",)
        left_out = {"-DPHIKIT_PORTABLE": self.portable, "-DPHIKIT_NO_TILES": not self.tiles}
        return (*_FLAGS, *native, *(flag for flag, told in left_out.items() if told))


def _processor() -> str:
    """What tells one processor from another, for code compiled for this one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = [x for x in lines if x.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(told))])


def _target(sources: Sources, compiler: Compiler) -> Path:
    key = hashlib.blake2b(digest_size=8)
    for name in (*sources.headers, *sources.files):
        key.update((sources.folder / name).read_bytes())
    key.update("\0".join((compiler.program, *compiler.flags, _processor())).encode())
    folder = compiler.folder or cache_folder() / "native"
    return folder / f"{sources.name}-{key.hexdigest()}.so"


def compiled(sources: Sources, compiler: Compiler) -> Path:
    """The library's file, compiled when it is not there yet.

    Raises:
        PhikitError: there is no such compiler, or it fails; says what it said.
    """
    target = _target(sources, compiler)
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
                [program, *compiler.flags, *(str(sources.folder / f) for f in sources.files),
                 "-o", str(made), "-lm"],
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if done.returncode:
                raise PhikitError(
                    f"{program} cannot compile the {sources.name}: {done.stderr[-800:]}"
                )
            made.replace(target)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise PhikitError(f"the {sources.name} cannot be compiled into {target.parent}: {e}") from e
    return target


def opened(sources: Sources, compiler: Compiler) -> ctypes.CDLL:
    """The compiled library. Calls let other Python threads run.

    Raises:
        PhikitError: it cannot be compiled or loaded.
    """
    path = compiled(sources, compiler)
    try:
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise PhikitError(f"{path} cannot be loaded: {e}", "delete it") from e
