"""GPUs by their vendors' figures."""

from __future__ import annotations

from dataclasses import dataclass

from phikit.errors import PhikitError, did_you_mean


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU, and how it is usually connected.

    Attributes:
        peak: dense bf16 operations per second; float8 doubles it where there is any.
        memory: bytes. `bandwidth`: bytes per second, of its memory.
        link: bytes per second in one direction, to the others of its node.
        network: bytes per second and GPU, between nodes.
        node: GPUs of one node.
    """

    name: str
    peak: float
    memory: float
    bandwidth: float
    link: float = 450e9
    network: float = 50e9
    node: int = 8


#: Vendor figures of the SXM modules, without sparsity.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312e12, 80e9, 2.039e12, link=300e9, network=25e9),
        Gpu("h100", 989e12, 80e9, 3.35e12),
        Gpu("h100-hbm2e", 989e12, 96e9, 2.4e12),  # as in the Grand Teton platform
        Gpu("h200", 989e12, 141e9, 4.8e12),
        Gpu("b200", 2250e12, 180e9, 7.7e12, link=900e9),
    )
}


def gpu_named(name: str) -> Gpu:
    """Raises PhikitError when the GPU is not known."""
    if name.lower() not in GPUS:
        raise PhikitError(f"no figures for the GPU {name!r}", did_you_mean(name.lower(), GPUS))
    return GPUS[name.lower()]
