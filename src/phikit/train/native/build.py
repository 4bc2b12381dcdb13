"""The training kernels as a loaded library (see `phikit.compiled`).

Without a compiler there is none; callers then use torch's own operations, and that is said once.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

from phikit.compiled import Compiler, Sources, opened
from phikit.errors import PhikitError

SOURCES = Sources(
    Path(__file__).parents[2],
    "training",
    (
        "engine/native/team.c", "engine/native/tiles.c", "train/native/attention.c",
        "train/native/passes.c", "train/native/logits.c", "train/native/products.c",
    ),
    ("engine/native/common.h", "engine/native/decode.h", "engine/native/alike.h"),
)  # fmt: skip
_log = logging.getLogger("phikit")


def open_library(compiler: Compiler) -> ctypes.CDLL:
    """The compiled library, its functions typed.

    Raises:
        PhikitError: it cannot be compiled or loaded.
    """
    library = opened(SOURCES, compiler)
    pointer, number, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    if library.phikit_confined_runs():
        library.phikit_confined_forward.argtypes = (*(pointer,) * 4, number)
        library.phikit_confined_backward.argtypes = (*(pointer,) * 5, number)
    if library.phikit_products_run():
        library.phikit_product_room.argtypes, library.phikit_product_room.restype = (
            (pointer, number), ctypes.c_size_t
        )  # fmt: skip
        library.phikit_product.argtypes, library.phikit_product.restype = (pointer, number), None
    library.phikit_sum_norm.argtypes = (*(pointer,) * 6, number, number, real, number)
    library.phikit_sum_norm_back.argtypes = (*(pointer,) * 8, *(number,) * 3)
    library.phikit_gate.argtypes = (pointer, pointer, *(number,) * 3)
    library.phikit_gate_back.argtypes = (*(pointer,) * 3, *(number,) * 3)
    library.phikit_logit_sums.argtypes = (
        pointer, number, pointer, real, *(pointer,) * 4, *(number,) * 3
    )  # fmt: skip
    library.phikit_logit_slopes.argtypes = (
        pointer, number, pointer, pointer, real, *(pointer,) * 4, real, *(number,) * 3
    )  # fmt: skip
    for name in ("sum_norm", "sum_norm_back", "gate", "gate_back", "logit_sums", "logit_slopes"):
        getattr(library, f"phikit_{name}").restype = None
    return library


@functools.cache
def library(compiler: Compiler = Compiler()) -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be had; what is missing is logged once."""
    try:
        kernels = open_library(compiler)
    except PhikitError as e:
        _log.warning("training uses torch's kernels, which are slower: %s", e)
        return None
    if not kernels.phikit_confined_runs():
        _log.warning(
            "training's attention uses torch's kernels, which are slower: this processor has no "
            "products of bfloat16 vectors (AVX-512 BF16)"
        )
    return kernels
