"""The shape of a LoRA adapter; the layers are in `lora`."""

from __future__ import annotations

from dataclasses import dataclass

from phikit.errors import PhikitError


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """The shape of one adapter.

    Attributes:
        layers: a regular expression that the whole name of a linear layer must match, counted
            from the module that is adapted: `layers.*mlp\\.(gate_up|down)_proj`.
        dropout: of an adapter's input, while training.
    """

    rank: int
    alpha: float
    layers: str
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PhikitError(f"the rank of an adapter is {self.rank}; it must be at least 1")

    @property
    def scale(self) -> float:
        """The factor of B A before it is added: α / r (arXiv 2106.09685, section 4.1)."""
        return self.alpha / self.rank
