"""From the architecture that a `config.json` names to the code that reads, builds and fills it.

The table below has one entry for each architecture; adding a model to the package is adding its
entry. An entry's parts are written "module:name" and imported when they are first needed, so that
nobody pays for a model he does not use. They are

- `read(raw, where) → configuration`: `raw` is the parsed `config.json`, `where` its name for
  errors. A configuration is a frozen dataclass with at least the attributes of `Config`.
- `write(configuration, dtype) → raw`: the `config.json` of what phikit saves.
- `build(configuration) → module`: a `torch.nn.Module` whose parameters and persistent buffers have
  the names of the published files, or those that `tensors` gives them. It is built on the meta
  device and filled afterwards: whatever it computes from the configuration it computes when it is
  used, or in a method `make_buffers()`, which is called on every submodule that has one once the
  weights are in place. Parameters that are one and the same object stay so.
- `tensors(configuration, (name, tensor) pairs) → (name, tensor) pairs`: renames, joins or leaves
  out what the files hold. Without it the files are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from phikit.errors import PhikitError, did_you_mean
from phikit.files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn


class Config(Protocol):
    """What every model's configuration says, whatever its layers are.

    Attributes:
        architecture: its key in the table.
        parameters: exact number of parameters; a matrix used twice counts once.
    """

    @property
    def architecture(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def parameters(self) -> int: ...

    def flops_per_token(self, context: int) -> float:
        """Forward operations for one token at the end of `context` positions (2 per MAC)."""
        ...

    def cache_bytes(self, context: int) -> int:
        """What one sequence of `context` positions keeps while generating, in bf16."""
        ...


@dataclass(frozen=True, slots=True)
class Architecture:
    """One entry of the table; the parts are described above."""

    read: str
    write: str
    build: str
    tensors: str = ""


ARCHITECTURES: Mapping[str, Architecture] = {
    "Phi3ForCausalLM": Architecture(
        read="phikit.models.decoder_config:from_hf",
        write="phikit.models.decoder_config:to_hf",
        build="phikit.models.decoder:Decoder",
    ),
    "LlamaForCausalLM": Architecture(  # written as Phi3ForCausalLM: its matrices are joined here
        read="phikit.models.decoder_config:from_hf",
        write="phikit.models.decoder_config:to_hf",
        build="phikit.models.decoder:Decoder",
        tensors="phikit.models.checkpoint:llama_tensors",
    ),
    "Phi4FlashForCausalLM": Architecture(
        read="phikit.models.flash.config:from_hf",
        write="phikit.models.flash.config:to_hf",
        build="phikit.models.flash.model:Flash",
    ),
    "Phi4MMForCausalLM": Architecture(
        read="phikit.models.multimodal.config:from_hf",
        write="phikit.models.multimodal.config:to_hf",
        build="phikit.models.multimodal.model:Phi4MM",
    ),
    "Phi4ForCausalLMV": Architecture(
        read="phikit.models.vision.reasoning_config:from_hf",
        write="phikit.models.vision.reasoning_config:to_hf",
        build="phikit.models.vision.reasoning:ReasoningVision",
    ),
}


def architecture(name: str, where: str = "config.json") -> Architecture:
    """The entry of that name.

    Raises:
        PhikitError: there is none; names the nearest.
    """
    if name not in ARCHITECTURES:
        raise PhikitError(
            f"{where}: {name!r} is not an architecture that phikit knows",
            did_you_mean(name, ARCHITECTURES),
        )
    return ARCHITECTURES[name]


def read_config(directory: Path) -> Any:
    """The configuration of a model directory, of whatever architecture it names.

    Raises:
        PhikitError: `config.json` is missing, is no JSON object, names no architecture that is
            known, or lacks a key.
    """
    path = directory / "config.json"
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise PhikitError(f"{path}: it holds no JSON object but {type(raw).__name__}")
    named = raw.get("architectures")
    if not isinstance(named, list) or not named:
        raise PhikitError(
            f"{path}: the key 'architectures' is missing or empty",
            f"it names the model's kind, for example {next(iter(ARCHITECTURES))!r}",
        )
    return part(architecture(str(named[0]), str(path)).read)(raw, str(path))


def config_json(config: Config, dtype: str) -> dict[str, Any]:
    """The `config.json` of a model that is saved in the precision of that name."""
    return part(architecture(config.architecture).write)(config, dtype)


def build(config: Config) -> nn.Module:
    """A new module of this configuration, on the current default device, weights not set."""
    return part(architecture(config.architecture).build)(config)


def tensors_for(
    config: Config, tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """What the files hold, under the names and in the shapes of the module."""
    entry = architecture(config.architecture)
    return part(entry.tensors)(config, tensors) if entry.tensors else iter(tensors)


def part(where: str) -> Callable[..., Any]:
    """The function or class that "module:name" means."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
