"""The engine's C kernels as a loaded library (see `phikit.compiled`).

Without a compiler there is no library; callers then use torch's own kernels, and that is said once.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

from phikit.compiled import Compiler, Sources, opened
from phikit.errors import PhikitError

SOURCES = Sources(
    Path(__file__).parent,
    "kernels",
    (
        "team.c", "tiles.c", "products.c", "halves.c", "rows.c", "step.c", "heads.c",
        "heads_tiles.c", "between.c", "wide.c", "attend8.c", "cache8.c", "differ.c", "differ8.c",
        "mamba.c", "norms.c", "panels.c", "many.c", "draw.c",
    ),
    ("common.h", "decode.h", "alike.h", "attend8.h", "differ.h", "step.h"),
)  # fmt: skip
_log = logging.getLogger("phikit")


class Matrix(ctypes.Structure):
    """`Matrix` of common.h."""

    _fields_ = (
        *((n, ctypes.c_int32) for n in ("kind", "n", "k", "group", "scale_groups", "padding")),
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    )


def open_library(compiler: Compiler) -> ctypes.CDLL:
    """The compiled library, its functions typed. Calls let other Python threads run.

    Raises:
        PhikitError: it cannot be compiled or loaded.
    """
    library = opened(SOURCES, compiler)
    matrix, pointer, number = ctypes.POINTER(Matrix), ctypes.c_void_p, ctypes.c_int
    library.phikit_linear.argtypes = (matrix, pointer, number, number, pointer, number)
    library.phikit_rows.argtypes = (matrix, pointer, number, number, pointer, number)
    library.phikit_unpack.argtypes = (matrix, pointer, ctypes.c_int64, number)
    library.phikit_unpack.restype = None
    library.phikit_step.argtypes = (*(pointer,) * 6, number, pointer, number, number)
    for kind in ("rows", "wide"):
        getattr(library, f"phikit_norm_{kind}").argtypes = (
            *(pointer,) * 4, number, number, ctypes.c_float, number
        )  # fmt: skip
        getattr(library, f"phikit_gate_{kind}").argtypes = (pointer, pointer, *(number,) * 3)
        getattr(library, f"phikit_attend_{kind}").argtypes = (*(pointer,) * 7, number, number)
    library.phikit_pack.argtypes = (pointer, number, number, pointer, number)
    library.phikit_packed_rows.argtypes = (matrix, pointer, number, pointer, number)
    library.phikit_many.argtypes = library.phikit_step.argtypes
    library.phikit_attends_as_trained.argtypes = (number, number)
    library.phikit_draw.argtypes = (*(pointer,) * 6, *(number,) * 3)
    library.phikit_mask.argtypes = (*(pointer,) * 3, *(number,) * 4)
    library.phikit_differ_rows.argtypes = (*(pointer,) * 6, number, number)
    library.phikit_differ_rows_8.argtypes = library.phikit_differ_rows.argtypes
    library.phikit_mamba_convolve.argtypes = (*(pointer,) * 6, number, number)
    library.phikit_mamba_scan.argtypes = (
        *(pointer,) * 5, number, pointer, pointer, number, number
    )  # fmt: skip
    library.phikit_layer_norm_rows.argtypes = (*(pointer,) * 5, number, number, ctypes.c_float)
    for name in (
        "layer_norm_rows", "differ_rows", "differ_rows_8", "mamba_convolve", "mamba_scan",
        "pack", "packed_rows", "mask", "rows",
    ):  # fmt: skip
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
