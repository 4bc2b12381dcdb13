"""What of a model is quantised, and how: the settings, and their place in `config.json`.

A quantised directory has the Hugging Face layout. Its `config.json` is that of the dense model with
one more key:

    "quantization_config": {
      "quant_method": "phikit", "version": 1, "method": "rtn" or "gptq",
      "layers": {"kind": "int4", "group": 32},     every layer whose `.data` is in the files,
      "others": {"lm_head": {"kind": "int8", ...}} but these
    }

In the safetensors files a quantised layer NAME has `NAME.data` and `NAME.scales`, laid out as
`packing` says; all other tensors are as in the dense model, in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from phikit.engine.quant.packing import Scheme
from phikit.errors import PhikitError
from phikit.models.flash.model import Flash

METHOD, VERSION = "phikit", 1
METHODS = ("rtn", "gptq")
HEADS = ("same", "bf16", "int8", "int4")
_AS_WEIGHTS = "dt_proj"  # of Mamba: its weights are used without calling it


@dataclass(frozen=True, slots=True)
class Settings:
    """How to quantise a model.

    Attributes:
        scheme: of all layers but the head.
        head: "same" as the others, or a kind of its own. A head that is tied to the embedding gets
            a copy of its own; the embedding stays bfloat16, of which a token reads one row.
        method: "rtn" rounds to nearest; "gptq" needs calibration text.
    """

    scheme: Scheme = Scheme()  # noqa: RUF009 (frozen)
    head: str = "same"
    method: str = "rtn"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PhikitError(f"method {self.method!r}; there are {', '.join(METHODS)}")
        if self.head not in HEADS:
            raise PhikitError(f"head {self.head!r}; there are {', '.join(HEADS)}")

    def of_layer(self, name: str, layer: nn.Module, biased: bool = False) -> Scheme | None:
        """How a layer is quantised; None when it stays as it is.

        Linear layers are, if they have no bias, are no part of an adapter, and their inputs divide
        into groups. A smaller group than asked for is taken where only that divides them.

        Args:
            biased: those with a bias are quantised too.
        """
        if type(layer) is not nn.Linear or "lora" in name:
            return None
        if layer.bias is not None and (not biased or name.endswith(_AS_WEIGHTS)):
            return None
        scheme = self.scheme
        if name == "lm_head" and self.head != "same":
            if self.head == "bf16":
                return None
            scheme = Scheme(self.head, scheme.group or 32)
        while not scheme.fits(layer.in_features) and scheme.group > 32:
            scheme = Scheme(scheme.kind, scheme.group // 2)
        return scheme if scheme.fits(layer.in_features) else None


def targets(model: nn.Module, settings: Settings) -> dict[str, Scheme]:
    """The layers that are quantised, and how. A biased layer is one of an encoder of pictures or
    sound, which stay as they are; but in phi-4-mini-flash it is one of attention's.

    Raises:
        PhikitError: there are none.
    """
    found = {}
    for name, module in model.named_modules():
        if (scheme := settings.of_layer(name, module, isinstance(model, Flash))) is not None:
            found[name] = scheme
    if not found:
        raise PhikitError(f"no linear layer of this {type(model).__name__} can be quantised")
    return found


def as_json(settings: Settings, layers: Mapping[str, Scheme]) -> dict[str, Any]:
    """The `quantization_config` of a model quantised so."""
    others = {name: asdict(s) for name, s in layers.items() if s != settings.scheme}
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "method": settings.method,
        "layers": asdict(settings.scheme),
        "others": others,
    }


def from_json(raw: Mapping[str, Any], where: str) -> tuple[Scheme, dict[str, Scheme]]:
    """The scheme of most layers, and those of the others by name.

    Raises:
        PhikitError: it is another program's, of a newer version, or lacks a key.
    """
    if raw.get("quant_method") != METHOD or raw.get("version") != VERSION:
        raise PhikitError(
            f"{where}: quantised by {raw.get('quant_method')!r}, version {raw.get('version')}; "
            f"phikit reads its own version {VERSION}",
            "quantise the dense model: phikit quantize MODEL --to int4 --out DIR",
        )
    try:
        return Scheme(**raw["layers"]), {n: Scheme(**s) for n, s in raw["others"].items()}
    except (KeyError, TypeError) as e:
        raise PhikitError(f"{where}: quantization_config is not whole ({e})") from e
