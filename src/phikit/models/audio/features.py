"""Sound to log-mel frames, as phi-4-multimodal was trained to hear it.

A frame is 25 ms, every 10 ms: pre-emphasis within the frame, a Hamming window, the power spectrum
in 31.25 Hz bins, 80 triangular filters spaced evenly on the mel scale from 0 to 7690 Hz, and the
logarithm of what is at least 1. What is left at the end and fills no frame is dropped.

Sound of 8 kHz has half the bins; those above 4 kHz are then zero, as in training, where it was not
resampled (the 4 kHz bin itself is zeroed too).

Shapes: N samples, T frames, W samples of a frame, F frequency bins, M mel features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phikit.errors import PhikitError
from phikit.models.audio.resample import resample

RATE = 16_000  # Hz
NARROW_RATE = 8_000  # Hz: the telephone's
MELS = 80
_WINDOW, _HOP, _FFT = 400, 160, 512  # samples at 16 kHz, half of them at 8 kHz
_PRE_EMPHASIS = 0.97
_INT16 = 32_768.0  # the filters were set for sound of 16-bit whole numbers
_HIGHEST = 7690.0  # Hz
_AT_ONCE = 4096  # frames whose spectra are held at once: 40 MB


def log_mel(wave: Tensor, rate: int) -> Tensor:
    """Features of a sound.

    Args:
        wave: [N] or [N, channels], between -1 and 1; channels are averaged.
        rate: samples per second. Sound above 16 kHz is resampled to 16 kHz, sound between 8 and
            16 kHz to 8 kHz, as in training.

    Returns:
        [T, 80] float32, T = (N - 400) // 160 + 1 for N samples at 16 kHz.

    Raises:
        PhikitError: the rate is below 8 kHz, or the sound is shorter than a frame of 25 ms.
    """
    if wave.dim() not in (1, 2):
        raise PhikitError(f"a sound has the shape {tuple(wave.shape)}, not samples × channels")
    if rate < NARROW_RATE:
        raise PhikitError(
            f"a sound has {rate} samples per second; below {NARROW_RATE} the model has heard none",
            "record it at 16000 or more",
        )
    wave_N = wave.float() if wave.dim() == 1 else wave.float().mean(1)
    working = RATE if rate >= RATE else NARROW_RATE
    wave_N = resample(wave_N, rate, working)
    narrow = RATE // working
    window, hop, fft = _WINDOW // narrow, _HOP // narrow, _FFT // narrow
    if len(wave_N) < window:
        raise PhikitError(
            f"a sound is {1000 * len(wave_N) / working:.1f} ms long; it must be at least 25 ms"
        )
    shape_W = torch.hamming_window(window, periodic=False, dtype=torch.float64, device=wave.device)
    filters_FM = mel_filters().to(wave.device)
    frames_TW = wave_N.unfold(0, window, hop)
    return torch.cat(
        [_features(part, shape_W, fft, filters_FM) for part in frames_TW.split(_AT_ONCE)]
    )


def _features(frame_TW: Tensor, shape_W: Tensor, fft: int, filters_FM: Tensor) -> Tensor:
    """[T, M] of frames that share nothing but their samples."""
    # the first sample of a frame has none before it: it is taken as its own predecessor
    before_TW = torch.cat((frame_TW[:, :1], frame_TW[:, :-1]), dim=1)
    frame_TW = (frame_TW - _PRE_EMPHASIS * before_TW) * _INT16
    spectrum_TF = torch.fft.rfft(frame_TW * shape_W, n=fft).to(torch.complex64)
    if fft < _FFT:
        quiet = spectrum_TF.new_zeros(len(spectrum_TF), len(filters_FM) - fft // 2)
        spectrum_TF = torch.cat((spectrum_TF[:, :-1], quiet), dim=1)
    power_TM = spectrum_TF.abs().square() @ filters_FM
    return power_TM.clamp(min=1.0).log()


def mel_filters() -> Tensor:
    """[F, M]: triangles with corners evenly spaced in mel, straight in mel, peaks of 1.

    mel(f) = 1127 ln(1 + f / 700). The published code gives the bin just below 7690 Hz no weight,
    transformers 0.0097; the latter is followed.
    """
    bins_F = torch.arange(_FFT // 2 + 1, dtype=torch.float64) * RATE / _FFT
    corner_M = torch.linspace(0.0, float(_mel(_HIGHEST)), MELS + 2, dtype=torch.float64)
    width = corner_M[1]
    away_FM = (_mel(bins_F)[:, None] - corner_M[1:-1]).abs() / width
    return (1.0 - away_FM).clamp(min=0.0).float()


def _mel(hertz: Tensor | float) -> Tensor:
    return 1127.0 * torch.log1p(torch.as_tensor(hertz, dtype=torch.float64) / 700.0)
