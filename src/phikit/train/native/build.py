"""The training kernels as a loaded library, compiled on first use like the engine's."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

from phikit.engine.native.build import FOLDER, Compiler, Sources, loaded
from phikit.errors import PhikitError

_HERE = Path(__file__).parent
TRAINING = Sources(
    "training",
    (FOLDER / "team.c", _HERE / "attention.c"),
    (FOLDER / "common.h",),
)
_log = logging.getLogger("phikit")


def open_library(compiler: Compiler) -> ctypes.CDLL:
    """The compiled library, its functions typed.

    Raises:
        PhikitError: it cannot be compiled or loaded.
    """
    library = loaded(compiler, TRAINING)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    if library.phikit_confined_runs():
        library.phikit_confined_forward.argtypes = (*(pointer,) * 4, number)
        library.phikit_confined_backward.argtypes = (*(pointer,) * 5, number)
    return library


@functools.cache
def library(compiler: Compiler = Compiler()) -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be had; the reason is logged once."""
    try:
        return open_library(compiler)
    except PhikitError as e:
        _log.warning("training uses torch's kernels, which are slower: %s", e)
        return None
