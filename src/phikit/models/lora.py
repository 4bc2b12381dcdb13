"""LoRA: low-rank adapters beside linear layers, several in one model, chosen per call or per row.

    y = W x + b + (α / r) · B (A x)          A [r, in], B [out, r]

Source: Hu et al. 2021 (arXiv 2106.09685). Phi-4-multimodal keeps two adapters in one model, vision
and speech, and chooses by what a prompt holds (arXiv 2503.01743, "mixture of LoRAs"); fine-tuning
adds one and trains it alone. Names are those that PEFT gives, which the published checkpoints use:
`base_layer.weight`, `lora_A.vision.weight`, `lora_B.vision.weight`.

    add(model, "mine", LoraSpec(rank=16, alpha=32, layers=r".*_proj"))
    activate(model, "mine")              # from now on, for every row
    with route(["vision", None]):        # within, whatever is active: row 0 vision, row 1 none
        model(ids_BL)

Shapes: B rows, L sequence, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.errors import PhikitError, did_you_mean
from phikit.models.lora_spec import LoraSpec

#: The adapter of every row, or None for a row without one. Of a thread, so that threads which
#: share a model may route their own rows.
Route = Sequence[str | None]
_route: ContextVar[tuple[tuple[str | None, ...], bool] | None] = ContextVar("route", default=None)


class _Routing:
    """How many routes are in force, in all threads. Where none is, the layers need not ask.

    torch.compile cannot follow a ContextVar: so a model that is trained or run without a route
    compiles into one graph, and only routed layers break it.
    """

    def __init__(self) -> None:
        self.open = 0
        self._lock = Lock()

    def change(self, by: int) -> None:
        with self._lock:
            self.open += by


_routing = _Routing()


@runtime_checkable
class Quantised(Protocol):
    """A linear layer with packed weights, whose scales are of the precision that it computes in."""

    in_features: int
    out_features: int
    scales: Tensor


class LoraLinear(nn.Module):
    """A linear layer and its adapters. The layer may be quantised; then adapters are not merged.

    Attributes:
        active: the adapter of every row where no `route` is in force; None for none.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer: Any = base
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.specs: dict[str, LoraSpec] = {}
        self.active: str | None = None

    def add(self, name: str, spec: LoraSpec) -> None:
        """Adds an adapter that does nothing yet: B is zero, A as `nn.Linear` would begin."""
        base = self.base_layer
        weight = next(t for t in base.state_dict().values() if t.is_floating_point())
        like = {"device": weight.device, "dtype": weight.dtype}
        self.lora_A[name] = nn.Linear(base.in_features, spec.rank, bias=False, **like)
        self.lora_B[name] = nn.Linear(spec.rank, base.out_features, bias=False, **like)
        nn.init.zeros_(self.lora_B[name].get_parameter("weight"))
        self.specs[name] = spec

    def forward(self, x: Tensor) -> Tensor:
        """[B, ..., I] → [B, ..., O].

        Raises:
            PhikitError: the route in force is for another number of rows, or names an adapter
                that this layer has not.
        """
        y = self.base_layer(x)
        routed = _route.get() if _routing.open else None
        if routed is None:
            return y if self.active is None else y + self.change(self.active, x)
        names, partial = routed
        if partial:
            names = tuple(n if n in self.specs else None for n in names)
        if len(names) != len(x):
            raise PhikitError(f"the route is for {len(names)} rows, but there are {len(x)}")
        for name in dict.fromkeys(n for n in names if n is not None):
            rows = [i for i, n in enumerate(names) if n == name]
            if len(rows) == len(names):
                y = y + self.change(name, x)
            else:
                index = torch.tensor(rows, device=x.device)
                y = y.index_add(0, index, self.change(name, x[index]))
        return y

    @property
    def weight(self) -> Tensor:
        """The weight in force outside a `route`: that of a plain layer, for code that takes it."""
        return self.base_layer.weight if self.active is None else self.merged(self.active)

    def change(self, name: str, x: Tensor) -> Tensor:
        """What an adapter adds to the layer's output."""
        self._check(name)
        return self.lora_B[name](self.lora_A[name](self._dropped(name, x))) * self.specs[name].scale

    def _dropped(self, name: str, x: Tensor) -> Tensor:
        spec = self.specs[name]
        return F.dropout(x, spec.dropout, self.training) if spec.dropout else x

    def widened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., I] → [..., I + R] and a weight [O, I + R]: their product is this layer's output.

        For code that takes the weight of a layer instead of calling it, and trains the adapter.
        """
        weight_OI = self.base_layer.weight
        if self.active is None:
            return x, weight_OI
        b_OR = self.lora_B[self.active].get_parameter("weight")
        low = self.lora_A[self.active](self._dropped(self.active, x))
        low = low * self.specs[self.active].scale
        return torch.cat((x, low), dim=-1), torch.cat((weight_OI, b_OR), dim=1)

    @torch.no_grad()
    def merged(self, name: str) -> Tensor:
        """The weight [O, I] of a plain layer that does the same as this one with the adapter."""
        self._check(name)
        a_RI, b_OR = (m[name].get_parameter("weight") for m in (self.lora_A, self.lora_B))
        change_OI = b_OR.float() @ a_RI.float() * self.specs[name].scale
        weight_OI = self.base_layer.weight
        return (weight_OI.float() + change_OI).to(weight_OI.dtype)

    def _check(self, name: str) -> None:
        if name not in self.specs:
            raise PhikitError(f"there is no adapter {name!r} here", did_you_mean(name, self.specs))


def add(module: nn.Module, name: str, spec: LoraSpec) -> list[str]:
    """Puts an adapter beside every linear layer that the spec names; returns their names.

    Raises:
        PhikitError: no layer's name matches, or one has an adapter of that name already.
    """
    if not re.fullmatch(r"\w+", name):
        raise PhikitError(f"{name!r} cannot be an adapter's name", "use letters, digits and _")
    pattern = re.compile(spec.layers)
    inside = tuple(f"{layer}." for layer, _ in lora_layers(module))
    taken = [
        (layer, part)
        for layer, part in module.named_modules()
        if isinstance(part, nn.Linear | LoraLinear | Quantised)
        and pattern.fullmatch(layer)
        and not layer.startswith(inside)
    ]
    if not taken:
        raise PhikitError(
            f"the adapter {name!r} has no layer: none is named like {spec.layers!r}",
            "linear layers here are, for example, " + ", ".join(_linear_layers(module)[:4]),
        )
    for layer, part in taken:
        if not isinstance(part, LoraLinear):
            parent, _, last = layer.rpartition(".")
            part = LoraLinear(cast(nn.Module, part))
            setattr(module.get_submodule(parent), last, part)
        elif name in part.specs:
            raise PhikitError(f"{layer} has an adapter {name!r} already")
        part.add(name, spec)
    return [layer for layer, _ in taken]


def lora_layers(module: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every adapted layer with its name."""
    for name, part in module.named_modules():
        if isinstance(part, LoraLinear):
            yield name, part


def activate(module: nn.Module, name: str | None) -> None:
    """Makes one adapter (or none) the one of every row from now on, where `route` says nothing.

    A layer without an adapter of that name works without one.

    Raises:
        PhikitError: no layer has such an adapter.
    """
    layers = [layer for _, layer in lora_layers(module)]
    if name is not None and not any(name in layer.specs for layer in layers):
        known = {n for layer in layers for n in layer.specs}
        raise PhikitError(f"there is no adapter {name!r}", did_you_mean(name, known))
    for layer in layers:
        layer.active = name if name in layer.specs else None


@contextmanager
def route(names: Route, partial: bool = False) -> Iterator[None]:
    """Within, row i (of the first dimension of what layers are given) uses adapter `names[i]`.

    Every adapted layer must have the adapters that are named, unless `partial`: then a layer that
    has one not does without. Where a backward pass computes layers anew (activation
    checkpointing), the route is no longer in force: use `activate` there.
    """
    token = _route.set((tuple(names), partial))
    _routing.change(1)
    try:
        yield
    finally:
        _routing.change(-1)
        _route.reset(token)


def parameters(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of one adapter, by their full names."""
    for key, parameter in module.named_parameters():
        if re.search(rf"\.lora_[AB]\.{re.escape(name)}\.weight$", key):
            yield key, parameter


@torch.no_grad()
def plain_tensors(module: nn.Module, name: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """The module's tensors as if it had never been adapted: LoRA names are gone.

    Args:
        name: the adapter to merge into the weights; none when left out.
    """
    layers = dict(lora_layers(module))
    for key, tensor in module.state_dict().items():
        if re.search(r"\.lora_[AB]\.\w+\.weight$", key):
            continue
        layer, _, last = key.rpartition(".base_layer.")
        if layer in layers:
            part = layers[layer]
            merge = last == "weight" and name in part.specs
            yield f"{layer}.{last}", part.merged(str(name)) if merge else tensor
        else:
            yield key, tensor


def _linear_layers(module: nn.Module) -> list[str]:
    return [n for n, part in module.named_modules() if isinstance(part, nn.Linear)]
