"""Quantised model directories: written tensor by tensor, loaded by mapping the files into memory.

Neither the dense model nor the result is ever whole in memory: files are mapped, a matrix is
rounded a few rows at a time, and what comes out is written at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phikit.engine.quant import packing, settings
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme
from phikit.engine.quant.settings import Settings
from phikit.engine.quant.shards import Shards
from phikit.errors import PhikitError
from phikit.files import atomic_directory, explain_os_errors, read_json, write_json
from phikit.models import checkpoint
from phikit.models.architectures import build, config_json, read_config, tensors_for

_ROUNDED = 2**19  # weights rounded at once: float32 copies of so many stay in the caches
_BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "preprocessor_config.json", "processor_config.json", "README.md",
)  # fmt: skip

#: Told a layer's name and what part of the work is done.
Progress = Callable[[str, float], None]


def round_matrix(w_NK: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Packed data and scales of a matrix rounded to nearest, a few rows at a time."""
    n, k = w_NK.shape
    layer = QuantLinear.packed_shapes(k, n, scheme)
    data, scales = (torch.empty(shape, dtype=dtype) for shape, dtype in layer)
    step = max(1, _ROUNDED // k // packing.LANES)
    for unit in range(0, len(data), step):
        w = w_NK[unit * packing.LANES : (unit + step) * packing.LANES]
        part = packing.pack(*packing.quantise(w, scheme), scheme.kind)
        data[unit : unit + step], scales[unit : unit + step] = part
    return data, scales


def skeleton(source: Path) -> tuple[Any, nn.Module]:
    """A model directory's configuration, and its module without memory for weights."""
    config = read_config(source)
    with torch.device("meta"):
        return config, build(config)


def twins(model: nn.Module) -> dict[str, list[str]]:
    """For the name of each tied parameter in the files, its other names."""
    first: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for name, t in model.state_dict(keep_vars=True).items():
        if (owner := first.setdefault(id(t), name)) != name:
            found.setdefault(owner, []).append(name)
    return found


def dense_tensors(source: Path) -> Iterator[tuple[str, Tensor]]:
    """(module's name, mapped tensor) of a dense model directory.

    Raises:
        PhikitError: the model is quantised already.
    """
    if "quantization_config" in read_json(source / "config.json"):
        raise PhikitError(f"{source} is quantised already", "quantise the dense model")
    return tensors_for(read_config(source), checkpoint.read_tensors(source))


def check_place(out: Path) -> None:
    """Refuses to write over what is no quantised model: the dense one, or anything else.

    Raises:
        PhikitError: something else is there.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise PhikitError(f"{out}: a file is there", "choose another folder with --out")
    if any(out.iterdir()) and not (
        (out / "config.json").is_file() and checkpoint.quantisation(out) == settings.METHOD
    ):
        raise PhikitError(
            f"{out}: not empty, and holds no quantised model", "choose another folder with --out"
        )


def convert(
    source: Path,
    out: Path,
    how: Settings,
    rounded: Iterable[tuple[str, Tensor, Tensor]] | None = None,
    progress: Progress = lambda name, part: None,
) -> None:
    """Writes the quantised copy of a model directory, tensor by tensor.

    Args:
        rounded: gives the name, packed data and scales of every layer that is quantised; they are
            rounded to nearest when left out.

    Raises:
        PhikitError: the source cannot be read, nothing of it can be quantised, or it is quantised.
    """
    config, model = skeleton(source)
    layers = settings.targets(model, how)
    names = [f"{name}.{leaf}" for name in layers for leaf in ("data", "scales")]
    with atomic_directory(out) as folder:
        shards = Shards(folder, [*names, *model.state_dict()])
        try:
            for layer, data, scales in rounded or ():
                shards.add(f"{layer}.data", data)
                shards.add(f"{layer}.scales", scales)
            _copy(source, model, shards, layers, rounded is None, progress)
            shards.finish()
        finally:
            shards.abandon()
        raw = config_json(config, "bfloat16")
        raw["quantization_config"] = settings.as_json(how, layers)
        write_json(folder / "config.json", raw)
        for name in _BESIDE:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _copy(
    source: Path,
    model: nn.Module,
    shards: Shards,
    layers: Mapping[str, Scheme],
    to_nearest: bool,
    progress: Progress,
) -> None:
    """Writes what is not quantised, and `to_nearest` also what is."""
    tied, known, done = twins(model), model.state_dict().keys(), 0
    for name, tensor in dense_tensors(source):
        if name not in known:
            continue  # computed, not learned: `checkpoint.fill` says which may be there
        kept = False
        for each in (name, *tied.get(name, ())):
            layer = each.removesuffix(".weight")
            if layer in layers and each.endswith(".weight"):
                if to_nearest:
                    data, scales = round_matrix(tensor, layers[layer])
                    shards.add(f"{layer}.data", data)
                    shards.add(f"{layer}.scales", scales)
            elif not kept:
                narrow = tensor.is_floating_point()
                shards.add(name, tensor.to(torch.bfloat16) if narrow else tensor)
                kept = True
            done += 1
            progress(layer, min(1.0, done / len(known)))


def load(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Loads a quantised model directory. On the CPU its weights are the mapped files themselves.

    Args:
        dtype: of what is not quantised, and of the activations; bfloat16 when left out.

    Raises:
        PhikitError: a file is missing or corrupt, or the tensors do not fit.
    """
    directory = Path(directory)
    where = directory / "config.json"
    default, others = settings.from_json(read_json(where)["quantization_config"], str(where))
    _, model = skeleton(directory)
    model = model.to(dtype or torch.bfloat16)
    tied, expected = twins(model), set(model.state_dict())
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.read_tensors(directory):
        layer, _, leaf = name.rpartition(".")
        if leaf in ("data", "scales"):
            packed.setdefault(layer, {})[leaf] = tensor.to(device)
            continue
        for each in (name, *tied.get(name, ())):
            _place(model, each, tensor.to(device, dtype or tensor.dtype), str(directory))
            expected.discard(each)
    for name, parts in packed.items():
        made = QuantLinear.like(model, name, others.get(name, default), str(directory))
        if parts.keys() != {"data", "scales"}:
            raise PhikitError(f"{directory}: of {name} there is only {', '.join(parts)}")
        made.take(parts["data"], parts["scales"])
        expected.discard(f"{name}.weight")
    if expected:
        shown = ", ".join(sorted(expected)[:10])
        raise PhikitError(f"{directory}: the files lack {len(expected)} tensors: {shown}")
    checkpoint.make_buffers(model)
    return model.eval()


def _place(model: nn.Module, name: str, tensor: Tensor, where: str) -> None:
    owner, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
        old = getattr(module, leaf)
    except AttributeError as e:
        raise PhikitError(f"{where}: the model has no {name}") from e
    if old.shape != tensor.shape:
        raise PhikitError(
            f"{where}: {name} is {tuple(tensor.shape)}, the model's {tuple(old.shape)}"
        )
    is_parameter = isinstance(old, nn.Parameter)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def total_bytes(directory: Path) -> int:
    """Bytes of a model directory's weights."""
    with explain_os_errors(directory, "reading"):
        return sum(f.stat().st_size for f in checkpoint.weight_files(directory))
