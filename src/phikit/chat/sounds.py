"""Sound files as samples. Needs soundfile: `pip install -e '.[multimodal]'`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phikit.errors import PhikitError, how_to_install
from phikit.files import explain_os_errors


def soundfile() -> Any:
    """The library that reads sound.

    Raises:
        PhikitError: it is not installed.
    """
    try:
        import soundfile
    except ImportError as e:
        raise PhikitError("reading sound needs soundfile", how_to_install("multimodal")) from e
    return soundfile


def read_sound(source: str | Path | bytes) -> tuple[Tensor, int]:
    """A WAV, FLAC, Ogg or MP3 file, or the bytes of one.

    Returns:
        samples [N, channels], float32 between -1 and 1, and their number per second.

    Raises:
        PhikitError: there is no such file, or no sound in it that can be read.
    """
    library = soundfile()
    name = str(source) if isinstance(source, str | Path) else "the sound"
    if isinstance(source, str | Path):
        with explain_os_errors(Path(source), "reading"):
            source = Path(source).read_bytes()
    try:
        samples, rate = library.read(io.BytesIO(source), dtype="float32", always_2d=True)
    except library.LibsndfileError as e:
        raise PhikitError(
            f"{name}: no sound that can be read ({e.error_string})",
            "give a WAV, FLAC, Ogg or MP3 file",
        ) from e
    return torch.from_numpy(samples), int(rate)
