"""LoRA in training: adapters put on, kept apart from the model below, written as PEFT reads them.

An adapter's folder holds `adapter_config.json` and `adapter_model.safetensors`, named as PEFT names
them, so `PeftModel.from_pretrained` takes it on the published model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from phikit.errors import PhikitError, did_you_mean
from phikit.files import atomic_directory, explain_os_errors, read_json, write_json
from phikit.models import lora
from phikit.models.checkpoint import write_tensors
from phikit.models.decoder import Decoder
from phikit.models.lora_spec import LoraSpec
from phikit.train.settings import LoraSettings

_PREFIX = "base_model.model."
_NOT_PLAIN = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")


def spec_of(targets: tuple[str, ...], rank: int, alpha: float, dropout: float = 0.0) -> LoraSpec:
    """An adapter on the layers whose last name is one of `targets`."""
    names = "|".join(map(re.escape, targets))
    return LoraSpec(rank, alpha, rf"(.*\.)?({names})", dropout)


def adapt(model: Decoder, settings: LoraSettings, seed: int) -> None:
    """Adds an adapter that does nothing yet, makes it active, and freezes everything else.

    Raises:
        PhikitError: the model has no layers of a name that is to be adapted; says which.
    """
    linear = (nn.Linear, lora.LoraLinear)
    names = [name for name, part in model.named_modules() if isinstance(part, linear)]
    for target in settings.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise PhikitError(
                f"lora.targets: the model has no linear layer named {target!r}",
                did_you_mean(target, {name.rpartition(".")[2] for name in names}),
            )
    spec = spec_of(settings.targets, settings.rank, settings.alpha, settings.dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lora.add(model, settings.name, spec)
    lora.activate(model, settings.name)
    model.requires_grad_(False)
    for _, parameter in lora.parameters(model, settings.name):
        parameter.requires_grad_(True)


def active(model: Decoder) -> str | None:
    """The name of the adapter that is in force, if there is one."""
    return next((part.active for _, part in lora.lora_layers(model) if part.active), None)


def head(model: Decoder, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and the matrix [V, D] whose product with them is the logits.

    An adapter on the head widens both by its rank, so that it is trained like any other and the
    logits still need not exist.
    """
    part = model.lm_head
    return (
        part.widened(hidden_ND) if isinstance(part, lora.LoraLinear) else (hidden_ND, part.weight)
    )


def draws(model: Decoder) -> bool:
    """Whether the adapter that is in force drops some of its inputs at random."""
    parts = (part for _, part in lora.lora_layers(model) if part.active)
    return any(part.specs[str(part.active)].dropout for part in parts)


@contextmanager
def without(model: Decoder) -> Iterator[None]:
    """Within, the model is what it was before any adapter."""
    name = active(model)
    if name is not None:
        lora.activate(model, None)
    try:
        yield
    finally:
        if name is not None:
            lora.activate(model, name)


def empty_like(model: Decoder) -> Decoder:
    """The same layers and adapters, with weights yet to be filled in."""
    with torch.device("meta"):
        other = Decoder(model.config)
    specs: dict[str, LoraSpec] = {}
    for _, part in lora.lora_layers(model):
        specs |= part.specs
    other.to_empty(device=model.lm_head.weight.device)
    if model.config.tied:
        other.lm_head.weight = other.model.embed_tokens.weight
    for name, spec in specs.items():
        lora.add(other, name, spec)
    if (name_in_force := active(model)) is not None:
        lora.activate(other, name_in_force)
    return other


def merged(model: Decoder) -> Decoder:
    """The plain model that does the same, if an adapter is in force; else the model itself."""
    name = active(model)
    if name is None:
        return model
    config = model.config
    if isinstance(model.lm_head, lora.LoraLinear) and name in model.lm_head.specs:
        config = replace(config, tied=False)  # the head is no longer the embeddings
    with torch.device("meta"):
        plain = Decoder(config)
    tensors = dict(lora.plain_tensors(model, name))
    plain.load_state_dict(tensors, assign=True)
    if config.tied:
        plain.lm_head.weight = plain.model.embed_tokens.weight
    return plain.requires_grad_(False).train(model.training)


def save(model: Decoder, name: str, folder: Path, base: str = "") -> None:
    """Writes an adapter in PEFT's layout, whole or not at all.

    Args:
        base: the model it belongs to, for the adapter's readers.
    """
    tensors, layers, spec = {}, [], None
    for layer, part in lora.lora_layers(model):
        if name in part.specs:
            spec = part.specs[name]
            layers.append(layer)
            for kind in ("lora_A", "lora_B"):
                weight = part.get_submodule(f"{kind}.{name}").get_parameter("weight")
                tensors[f"{_PREFIX}{layer}.{kind}.weight"] = weight.detach().cpu().contiguous()
    if spec is None:
        raise PhikitError(f"there is no adapter {name!r} to write")
    with explain_os_errors(folder, "writing"), atomic_directory(folder) as new:
        write_tensors(tensors, new / "adapter_model.safetensors", {"format": "pt"})
        write_json(
            new / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base,
                "r": spec.rank,
                "lora_alpha": spec.alpha,
                "lora_dropout": spec.dropout,
                "target_modules": _targets(model, layers),
                "bias": "none",
                "fan_in_fan_out": False,
                "inference_mode": True,
            },
        )


def _targets(model: Decoder, layers: Sequence[str]) -> list[str]:
    """Adapted layers as PEFT finds them: by the last part of their names where that is all of its
    kind, else by the whole name."""
    linear = [
        n for n, part in model.named_modules() if isinstance(part, nn.Linear | lora.LoraLinear)
    ]
    found = set()
    for layer in layers:
        last = layer.rpartition(".")[2]
        kind = [n for n in linear if n.rpartition(".")[2] == last]
        found.add(last if set(kind) <= set(layers) else layer)
    return sorted(found)


def load(model: Decoder, folder: Path, name: str) -> None:
    """Puts an adapter that PEFT or phikit wrote on a model, under a name; it is not made active.

    Raises:
        PhikitError: it is no LoRA adapter, or of a kind that is none of one rank and scale, or
            does not fit the model.
    """
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise PhikitError(f"{folder}: not a LoRA adapter without biases")
    if odd := [key for key in _NOT_PLAIN if config.get(key)]:
        raise PhikitError(
            f"{folder}: {odd[0]} is {config[odd[0]]!r} in adapter_config.json, which is not "
            "supported",
            "merge it into its model with PEFT (merge_and_unload), and take that",
        )
    file = folder / "adapter_model.safetensors"
    try:
        with explain_os_errors(file, "reading"):
            tensors = load_file(file)
    except SafetensorError as e:
        raise PhikitError(f"{file}: corrupt safetensors file ({e})") from e
    # what is adapted the tensors say; "target_modules" may be a list, an expression, or a word
    suffix = ".lora_A.weight"
    layers = [k.removeprefix(_PREFIX).removesuffix(suffix) for k in tensors if k.endswith(suffix)]
    rank, alpha = config["r"], config["lora_alpha"]
    if config.get("use_rslora"):  # scaled by alpha / sqrt(rank)
        alpha *= math.sqrt(rank)
    pattern = "|".join(map(re.escape, layers))
    spec = LoraSpec(rank, alpha, pattern, config.get("lora_dropout", 0.0))
    lora.add(model, name, spec)
    for key, parameter in lora.parameters(model, name):
        stored = _PREFIX + key.replace(f".{name}.weight", ".weight")
        tensor = tensors.pop(stored, None)
        if tensor is None or tensor.shape != parameter.shape:
            raise PhikitError(f"{file}: {stored} is missing or of another shape")
        with torch.no_grad():
            parameter.copy_(tensor)
    held = model.state_dict()
    for key in [k for k in tensors if ".base_layer." in k]:  # PEFT copies an adapted head's own
        mine = held.get(key.removeprefix(_PREFIX))
        if mine is None or not torch.equal(mine, tensors[key].to(mine.dtype)):
            raise PhikitError(
                f"{file}: it holds {key}, which is not the model's own",
                "it was trained on another model: give that one",
            )
        del tensors[key]
    if tensors:
        raise PhikitError(f"{file}: {next(iter(tensors))} has no layer in the model")
