"""LoRA in steps of many rows: the base product for all rows at once, an adapter's own part for its.

Shapes: M rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from phikit.engine.packed import Product
from phikit.models.lora import LoraLinear, lora_layers


class Adapters:
    """The adapters of a model, and which rows use which in the step under way.

    Attributes:
        names: of all adapters; active: the one of rows that name none, or empty.
        groups: of the step: (adapter, its rows, or None for all of them).
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for _, layer in lora_layers(model)]
        self.names = frozenset(name for layer in layers for name in layer.specs)
        self.active = next((layer.active for layer in layers if layer.active), "")
        self.groups: list[tuple[str, Tensor | None]] = []

    def full(self, names: Sequence[str], count: int) -> tuple[str, ...]:
        """The adapter of each of `count` rows, with the active one where none is named."""
        return tuple(n or self.active for n in names) if names else (self.active,) * count

    def choose(self, names: Sequence[str], count: int, device: torch.device) -> bool:
        """Sets `groups` for the rows of a step; says whether any row has an adapter."""
        self.groups = []
        if not self.names:
            return False
        rows = self.full(names, count)
        for name in sorted(set(rows) - {""}):
            mine = [i for i, n in enumerate(rows) if n == name]
            index = None if len(mine) == count else torch.tensor(mine, device=device)
            self.groups.append((name, index))
        return bool(self.groups)

    def product(
        self, layer: LoraLinear, base: Product, part: Callable[[nn.Module], Product] | None = None
    ) -> Product:
        """The layer's product, for rows chosen by `choose`.

        Args:
            part: how to multiply by an adapter's matrices; as the layer does when left out.
        """
        parts = (
            {}
            if part is None
            else {
                name: (part(layer.lora_A[name]), part(layer.lora_B[name]), spec.scale)
                for name, spec in layer.specs.items()
            }
        )

        def change(name: str, x_MI: Tensor) -> Tensor:
            if not parts:
                return layer.change(name, x_MI)
            a, b, scale = parts[name]
            return b(a(x_MI)) * scale

        def product(x_MI: Tensor) -> Tensor:
            y_MO: Tensor = base(x_MI)
            for name, index in self.groups:
                if name not in layer.specs:
                    continue
                if index is None:
                    y_MO = y_MO + change(name, x_MI)
                else:
                    y_MO = y_MO.index_add(0, index, change(name, x_MI[index]))
            return y_MO

        return product
