"""Real picture files for the tests: rendered, plotted, and written in every awkward mode."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def rendered_page(folder: Path) -> Path:
    """A page of text and a table as a browser draws it, 900 × 1250 pixels."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    rows = "".join(
        f"<tr><td>{i}</td><td>{i * i}</td><td>№ {i} of many</td></tr>" for i in range(25)
    )
    page = folder / "page.html"
    page.write_text(
        "<meta charset=utf-8><body style='font:17px serif;width:760px;margin:40px'>"
        "<h1 style='color:#235'>Minutes of the meeting</h1><p>The committee met at nine and agreed "
        "on everything but the date.</p>"
        f"<table border=1 cellpadding=4>{rows}</table></body>"
    )
    out = folder / "page.png"
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--window-size=900,1250", f"--screenshot={out}", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return out


def figure(folder: Path, width: float = 6.4, height: float = 4.8) -> Path:
    """A plot, at 100 pixels an inch."""
    from matplotlib.figure import Figure

    drawn = Figure((width, height), dpi=100)
    axes = drawn.add_subplot()
    x = np.linspace(0, 9, 300)
    axes.plot(x, np.sin(x) * np.exp(-x / 7), label="damped")
    axes.scatter(x[::9], np.cos(x[::9]), c=x[::9])
    axes.set(title="Measured", xlabel="seconds", ylabel="volts")
    axes.legend()
    out = folder / f"figure-{width}-{height}.png"
    drawn.savefig(out)
    return out


def scene(width: int, height: int) -> np.ndarray:
    """Something like a photograph: soft shading, edges and grain; uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    light = 0.5 + 0.5 * np.sin(x / 31 + 2 * np.sin(y / 57))
    disc = ((x - width / 3) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 3.1) ** 2) * 0.7
    colours = np.stack([light, y / max(height, 1) * 0.8 + disc * 0.2, disc + 0.2 * light], -1)
    grain = np.random.default_rng(width * 10_007 + height).normal(0, 0.04, colours.shape)
    return (np.clip(colours + grain, 0, 1) * 255).astype(np.uint8)


def photograph(folder: Path, width: int, height: int) -> Path:
    out = folder / f"photo-{width}-{height}.jpg"
    Image.fromarray(scene(width, height)).save(out, quality=88)
    return out
