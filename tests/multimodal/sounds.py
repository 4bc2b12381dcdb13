"""Sound to test with: chirps that need nothing, speech where espeak-ng and sox are there."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it sits down and thinks about it."


def chirp(seconds: float, rate: int, seed: int = 0) -> torch.Tensor:
    """A tone that rises through all of the band, over faint noise; [N] between -1 and 1."""
    count = int(seconds * rate)
    at = torch.arange(count, dtype=torch.float64) / rate
    phase = 2 * torch.pi * (60 * at + (0.45 * rate - 60) / (2 * seconds) * at**2)
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return (0.6 * torch.sin(phase) * (1 - 0.5 * at / seconds)).float() + 0.01 * noise


def speech(folder: Path, rate: int = 16_000, text: str = SENTENCE, channels: int = 1) -> Path:
    """A wav file of a spoken sentence; skips the test where the tools are missing."""
    if not (shutil.which("espeak-ng") and shutil.which("sox")):
        pytest.skip("espeak-ng and sox make the speech")
    raw, path = folder / "raw.wav", folder / f"speech-{rate}-{channels}.wav"
    subprocess.run(["espeak-ng", "-w", raw, text], check=True)
    # without dither the file is the same every time
    subprocess.run(["sox", "-D", raw, "-r", str(rate), "-c", str(channels), path], check=True)
    return path
