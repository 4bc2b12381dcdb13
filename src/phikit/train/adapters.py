"""LoRA in training: adapters put on, kept apart from the model below, written as PEFT reads them.

An adapter's folder holds `adapter_config.json` and `adapter_model.safetensors`, named as PEFT names
them, so `PeftModel.from_pretrained` takes it on the published model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from phikit.errors import PhikitError
from phikit.files import atomic_directory, explain_os_errors, read_json, write_json
from phikit.models import lora
from phikit.models.decoder import Decoder
from phikit.models.lora_spec import LoraSpec
from phikit.train.settings import LoraSettings

_PREFIX = "base_model.model."


def spec_of(targets: tuple[str, ...], rank: int, alpha: float, dropout: float = 0.0) -> LoraSpec:
    """An adapter on the layers whose last name is one of `targets`."""
    names = "|".join(map(re.escape, targets))
    return LoraSpec(rank, alpha, rf"(.*\.)?({names})", dropout)


def adapt(model: Decoder, settings: LoraSettings, seed: int) -> None:
    """Adds an adapter that does nothing yet, makes it active, and freezes everything else.

    Raises:
        PhikitError: the model has no layers of the names that are to be adapted.
    """
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
    with torch.device("meta"):
        plain = Decoder(model.config)
    tensors = dict(lora.plain_tensors(model, name))
    plain.load_state_dict(tensors, assign=True)
    if model.config.tied:
        plain.lm_head.weight = plain.model.embed_tokens.weight
    return plain.requires_grad_(False).train(model.training)


def save(model: Decoder, name: str, folder: Path, base: str = "") -> None:
    """Writes an adapter in PEFT's layout, whole or not at all.

    Args:
        base: the model it belongs to, for the adapter's readers.
    """
    tensors, targets, spec = {}, set(), None
    for layer, part in lora.lora_layers(model):
        if name in part.specs:
            spec = part.specs[name]
            targets.add(layer.rpartition(".")[2])
            for kind in ("lora_A", "lora_B"):
                weight = part.get_submodule(f"{kind}.{name}").get_parameter("weight")
                tensors[f"{_PREFIX}{layer}.{kind}.weight"] = weight.detach().cpu().contiguous()
    if spec is None:
        raise PhikitError(f"there is no adapter {name!r} to write")
    with atomic_directory(folder) as new:
        save_file(tensors, new / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(
            new / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base,
                "r": spec.rank,
                "lora_alpha": spec.alpha,
                "lora_dropout": spec.dropout,
                "target_modules": sorted(targets),
                "bias": "none",
                "fan_in_fan_out": False,
                "inference_mode": True,
            },
        )


def load(model: Decoder, folder: Path, name: str) -> None:
    """Puts an adapter that PEFT or phikit wrote on a model, under a name; it is not made active.

    Raises:
        PhikitError: it is no LoRA adapter, or does not fit the model.
    """
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise PhikitError(f"{folder}: not a LoRA adapter without biases")
    file = folder / "adapter_model.safetensors"
    try:
        with explain_os_errors(file, "reading"):
            tensors = load_file(file)
    except SafetensorError as e:
        raise PhikitError(f"{file}: corrupt safetensors file ({e})") from e
    targets = config["target_modules"]
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    spec = spec_of(names, config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0))
    lora.add(model, name, spec)
    for key, parameter in lora.parameters(model, name):
        stored = _PREFIX + key.replace(f".{name}.weight", ".weight")
        tensor = tensors.pop(stored, None)
        if tensor is None or tensor.shape != parameter.shape:
            raise PhikitError(f"{file}: {stored} is missing or of another shape")
        with torch.no_grad():
            parameter.copy_(tensor)
    if tensors:
        raise PhikitError(f"{file}: {next(iter(tensors))} has no layer in the model")
