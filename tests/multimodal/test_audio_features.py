"""Log-mel features: against transformers' extractor, and against the definition; resampling."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sounds import chirp, speech

from phikit.errors import PhikitError
from phikit.models.audio.features import log_mel, mel_filters
from phikit.models.audio.resample import resample


def theirs(wave: torch.Tensor) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.Phi4MultimodalFeatureExtractor()
    out = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    return out["audio_input_features"][0]


def by_definition(wave: np.ndarray, rate: int) -> np.ndarray:
    """The features of sound of 8 or 16 kHz in float64, step by step."""
    half = 16_000 // rate
    window, hop, fft = 400 // half, 160 // half, 512 // half
    n = np.arange(window)
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * n / (window - 1))
    wave_of_bin = np.exp(-2j * np.pi * np.outer(n, np.arange(257)) / fft)
    if half == 2:
        wave_of_bin[:, 128:] = 0
    corners = np.linspace(0, 1127 * math.log(1 + 7690 / 700), 82)
    rows = []
    for start in range(0, len(wave) - window + 1, hop):
        frame = wave[start : start + window].astype(np.float64)
        sharp = np.array([frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(window)]) * 32768
        power = np.abs((sharp * hamming) @ wave_of_bin) ** 2
        row = []
        for m in range(80):
            low, centre, high = corners[m : m + 3]
            total = 0.0
            for k in range(257):
                at = 1127 * math.log(1 + k * 31.25 / 700)
                slope = min((at - low) / (centre - low), (high - at) / (high - centre))
                total += max(slope, 0.0) * power[k]
            row.append(math.log(max(total, 1.0)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("count", [400, 559, 560, 16_000, 33_333])
def test_chirps_as_transformers(count: int) -> None:
    wave = chirp(count / 16_000, 16_000)[:count]
    ours = log_mel(wave, 16_000)
    assert ours.shape == ((len(wave) - 400) // 160 + 1, 80)
    torch.testing.assert_close(ours, theirs(wave), rtol=0, atol=1e-4)


def test_speech_as_transformers(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    wave = torch.from_numpy(soundfile.read(speech(tmp_path), dtype="float32")[0])
    ours = log_mel(wave, 16_000)
    assert len(ours) > 300 and ours.max() > 15
    torch.testing.assert_close(ours, theirs(wave), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_the_definition(rate: int) -> None:
    wave = chirp(0.08, rate)
    expected = by_definition(wave.numpy(), rate)
    np.testing.assert_allclose(log_mel(wave, rate).numpy(), expected, atol=2e-4)


def test_telephone_sound_says_nothing_above_4_khz() -> None:
    features = log_mel(chirp(0.5, 8_000), 8_000)
    filters = mel_filters()
    above = (filters[:128] > 0).sum(0) == 0  # filters with no bin below 4 kHz
    assert 10 < above.sum() < 40
    assert torch.equal(features[:, above], torch.zeros_like(features[:, above]))
    assert (features[:, ~above].mean(0) > 5).all()


def test_channels_are_averaged_and_silence_is_zero() -> None:
    left, right = chirp(0.2, 16_000), chirp(0.2, 16_000, seed=1)
    both = log_mel(torch.stack((left, right), 1), 16_000)
    torch.testing.assert_close(both, log_mel((left + right) / 2, 16_000))
    assert torch.equal(log_mel(torch.zeros(800), 16_000), torch.zeros(3, 80))


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050])
def test_a_high_rate_gives_what_the_same_sound_at_16_khz_gives(rate: int) -> None:
    """A smooth sound below 6 kHz, sampled at both rates."""

    def sampled(per_second: int) -> torch.Tensor:
        at = torch.arange(per_second, dtype=torch.float64) / per_second
        tones = sum(torch.sin(2 * torch.pi * f * at + f) for f in (200.0, 700.0, 1900.0, 5500.0))
        return (0.2 * tones * torch.sin(torch.pi * at) ** 2).float()

    ours, expected = log_mel(sampled(rate), rate), log_mel(sampled(16_000), 16_000)
    assert ours.shape == expected.shape
    loud = expected > 10
    assert loud.float().mean() > 0.2
    assert (ours - expected)[loud].abs().max() < 0.05


@pytest.mark.parametrize(
    ("rate", "target", "count"),
    [(48_000, 16_000, 500), (44_100, 16_000, 700), (11_025, 8_000, 300), (16_001, 16_000, 90)],
)
def test_resampling_is_filtering_between_zeros(rate: int, target: int, count: int) -> None:
    """Up by zeros between samples, through the filter, down by leaving samples out."""
    x = chirp(count / rate, rate)[:count].double().numpy()
    common = math.gcd(rate, target)
    up, down = target // common, rate // common
    reach = 10 * max(up, down)
    at = np.arange(-reach, reach + 1)
    h = np.sinc(at / max(up, down)) * np.kaiser(2 * reach + 1, 5.0)
    h *= up / h.sum()
    if len(x) * up * len(h) > 3e9:  # too many zeros to write out: the sum over real samples only
        wanted = [
            sum(x[i] * h[n * down - i * up + reach] for i in range(len(x))
                if abs(n * down - i * up) <= reach)
            for n in range(-(-len(x) * up // down))
        ]  # fmt: skip
    else:
        stuffed = np.zeros(len(x) * up)
        stuffed[::up] = x
        wanted = np.convolve(stuffed, h)[reach : reach + len(stuffed) : down]
    got = resample(torch.from_numpy(x), rate, target)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-6)


def test_resampling_as_scipy() -> None:
    signal = pytest.importorskip("scipy.signal")
    for rate, up, down in ((48_000, 1, 3), (44_100, 160, 441), (22_050, 320, 441)):
        x = chirp(0.7, rate).double()
        wanted = signal.resample_poly(x.numpy(), up, down)
        np.testing.assert_allclose(resample(x, rate, 16_000).numpy(), wanted, atol=1e-6)


def test_what_cannot_be_heard_is_refused() -> None:
    with pytest.raises(PhikitError, match="6000 samples per second"):
        log_mel(torch.zeros(6000), 6_000)
    with pytest.raises(PhikitError, match=r"24\.9 ms long"):
        log_mel(torch.zeros(399), 16_000)
    with pytest.raises(PhikitError, match="not samples × channels"):
        log_mel(torch.zeros(2, 3, 4), 16_000)
