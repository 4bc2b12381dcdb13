"""Model directories in the Hugging Face layout: read memory-mapped, written atomically.

Weights are safetensors only, one file or sharded with an index; nothing is ever unpickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from phikit.errors import PhikitError
from phikit.files import explain_os_errors, read_json, write_json
from phikit.models.architectures import (
    Config,
    build,
    config_json,
    read_config,
    tensors_for,
)
from phikit.models.decoder import Decoder

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: it cannot be written, as writing any other file says it.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as e:
        raise os_error(e) from e


def os_error(error: BaseException) -> BaseException:
    """The system's error behind one of safetensors, which has its number in its text alone."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, by its index when it has one.

    Raises:
        PhikitError: there are none, or the index names a file that is not there.
    """
    index = directory / INDEX
    if index.exists():
        files = sorted({directory / name for name in read_json(index)["weight_map"].values()})
        missing = [f.name for f in files if not f.exists()]
        if missing:
            raise PhikitError(
                f"{directory}: {index.name} names files that are not there: {', '.join(missing)}",
                "fetch them, or fetch the whole model again",
            )
        return files
    single = directory / "model.safetensors"
    if not single.exists():
        others = [p.name for p in directory.glob("*.bin")] if directory.is_dir() else []
        pickled = f"; {', '.join(others)} are pickles, which are never read" if others else ""
        raise PhikitError(
            f"{directory}: no model.safetensors here{pickled}",
            "give a directory in the Hugging Face layout with safetensors weights",
        )
    return [single]


def read_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) one by one from the memory-mapped files of a model directory.

    A file is mapped anew for each tensor: what has been read of a mapping counts as this process's
    memory until the mapping ends, so that a single one would come to hold the whole file.

    Raises:
        PhikitError: a file is truncated or corrupt; names it.
    """
    for file in weight_files(directory):
        with _opened(file) as f:
            names = list(f.keys())
        for name in names:
            with _opened(file) as f:
                tensor = f.get_tensor(name)
            yield name, tensor
            del tensor


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with explain_os_errors(file, "reading"), safe_open(file, framework="pt") as f:
            yield f
    except SafetensorError as e:
        raise PhikitError(
            f"{file}: corrupt or truncated safetensors file ({e})",
            "delete the file and make or fetch it again",
        ) from e


def fuse_llama(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Joins the separate q/k/v and gate/up matrices of Llama-shaped files into phi's fused ones."""
    groups = {"q_proj": ("qkv_proj", "q_proj", "k_proj", "v_proj"),
              "gate_proj": ("gate_up_proj", "gate_proj", "up_proj")}  # fmt: skip
    member = {part: fused for fused, *parts in groups.values() for part in parts}
    order = {fused: tuple(parts) for fused, *parts in groups.values()}
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        found = re.fullmatch(r"(.*\.)(\w+)\.weight", name)
        if not found or found[2] not in member:
            yield name, tensor
            continue
        target = f"{found[1]}{member[found[2]]}.weight"
        parts = waiting.setdefault(target, {})
        parts[found[2]] = tensor
        wanted = order[member[found[2]]]
        if len(parts) == len(wanted):
            del waiting[target]
            yield target, torch.cat([parts[p] for p in wanted])
    for target, parts in waiting.items():
        raise PhikitError(f"{target} cannot be fused: only {', '.join(parts)} are in the files")


def llama_tensors(_: Config, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """What `architectures` asks of Llama-shaped files."""
    return fuse_llama(tensors)


def fill(module: torch.nn.Module, tensors: Iterator[tuple[str, Tensor]], where: str) -> None:
    """Copies tensors into a module's parameters and buffers, each exactly once.

    Raises:
        PhikitError: tensors are missing, unexpected or of another shape; names them all.
    """
    targets: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    tied = {name for name, t in targets.items() for other, u in targets.items()
            if t is u and other < name}  # fmt: skip
    seen: set[str] = set()
    wrong: list[str] = []
    with torch.no_grad():
        for name, tensor in tensors:
            if name not in targets:
                if name.endswith("rotary_emb.inv_freq"):
                    continue  # written by old transformers; computed, not learned
                wrong.append(f"unexpected  {name} {tuple(tensor.shape)}")
            elif targets[name].shape != tensor.shape:
                wrong.append(
                    f"mis-shaped  {name}: file {tuple(tensor.shape)}, "
                    f"model {tuple(targets[name].shape)}"
                )
                seen.add(name)
            else:
                targets[name].copy_(tensor)
                seen.add(name)
    untied_twin = {n for n in tied if n not in seen}
    missing = targets.keys() - seen - untied_twin
    seen_by_twin = {n for n in missing for m in tied & seen if targets[n] is targets[m]}
    wrong += [f"missing     {n} {tuple(targets[n].shape)}" for n in sorted(missing - seen_by_twin)]
    if wrong:
        shown = "\n    ".join(wrong[:20])
        more = f"\n    ... and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise PhikitError(
            f"{where}: the tensors do not fit the model:\n    {shown}{more}",
            "config.json and the weights are not of the same model, or a file is not whole",
        )


def empty(config: Config, dtype: torch.dtype, device: str | torch.device) -> torch.nn.Module:
    """A module with memory for its weights but nothing in it yet; tied weights are one."""
    with torch.device("meta"):
        model = build(config)
    first: dict[int, str] = {}
    ties = [
        (name, first[id(t)])
        for name, t in model.state_dict(keep_vars=True).items()
        if first.setdefault(id(t), name) != name
    ]
    model = model.to(dtype).to_empty(device=device)
    for name, twin in ties:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(twin))
    return model


def main_precision(directory: Path) -> torch.dtype:
    """The precision that most numbers of a model directory are in.

    A few may be in another: what exponentials are taken of is kept in float32 in some models.
    """
    counts: dict[torch.dtype, int] = {}
    for _, tensor in read_tensors(directory):  # memory-mapped: nothing is read
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    if not counts:
        raise PhikitError(f"{directory}: there are no tensors in its files")
    return max(counts, key=counts.__getitem__)


def quantisation(directory: Path) -> str:
    """How the weights of a model directory are quantised, as its config.json says; "" if not."""
    raw = read_json(directory / "config.json")
    found = raw.get("quantization_config") if isinstance(raw, dict) else None
    if not found:
        return ""
    return str(found.get("quant_method") if isinstance(found, dict) else found)


def load_any(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> torch.nn.Module:
    """Loads a model directory of any architecture that `architectures` lists.

    Args:
        directory: has `config.json` and safetensors weights.
        dtype: the precision to hold the weights in; that of the files when left out.

    Raises:
        PhikitError: a file is missing or corrupt, the architecture is not known, or the tensors do
            not fit.
    """
    directory = Path(directory)
    if method := quantisation(directory):
        raise PhikitError(
            f"{directory}: its weights are quantised by {method!r}, and whole ones are needed here",
            "give the model in bfloat16; quantised ones generate: chat, pivots run, eval",
        )
    config = read_config(directory)
    if dtype is None:
        dtype = main_precision(directory)
    model = empty(config, dtype, device)
    fill(model, tensors_for(config, read_tensors(directory)), str(directory))
    make_buffers(model)
    return model.eval()


def make_buffers(model: torch.nn.Module) -> None:
    """Lets every submodule that keeps computed tensors compute them (see `architectures`)."""
    for module in model.modules():
        if callable(make := getattr(module, "make_buffers", None)):
            make()


def load(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Decoder:
    """`load_any` for what works with dense decoders only: training, search, export.

    Raises:
        PhikitError: as `load_any`; or the directory holds another kind of model.
    """
    named = read_config(Path(directory)).architecture
    model = load_any(directory, dtype, device)
    if not isinstance(model, Decoder):
        raise PhikitError(
            f"{directory}: it holds a {named}, where a dense decoder is needed",
            "give a model of phi-4's or phi-4-mini's kind",
        )
    return model


def save(
    model: torch.nn.Module,
    directory: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `config.json`, `generation_config.json` and the weights into a directory.

    The weights are `model.safetensors`, or shards with an index when they are larger than one.
    Weights that are tied are written once. Use inside `files.atomic_directory`.

    Args:
        model: has its configuration as `config`.
        dtype: the precision to write; the model's own when left out. No more than a shard is held
            in it at a time.
        shard_bytes: the largest shard; a larger tensor is a shard of its own.
    """
    config: Config = model.config  # type: ignore[assignment]
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, t in model.state_dict(keep_vars=True).items():
        if id(t) not in seen:
            seen.add(id(t))
            state[name] = t.detach()
    held = dtype or next(iter(state.values())).dtype
    with explain_os_errors(directory, "writing"):
        directory.mkdir(parents=True, exist_ok=True)
        _write_shards(state, directory, dtype, shard_bytes)
    raw = config_json(config, str(held).removeprefix("torch."))
    write_json(directory / "config.json", raw)
    write_json(
        directory / "generation_config.json",
        {
            "bos_token_id": config.bos_id,
            "eos_token_id": list(config.eos_ids) or None,
            "pad_token_id": config.pad_id,
        },
    )


def _write_shards(
    state: Mapping[str, Tensor], directory: Path, dtype: torch.dtype | None, shard_bytes: int
) -> None:
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, t in state.items():
        nbytes = t.numel() * (dtype or t.dtype).itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
        total += nbytes
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = {n: state[n].to("cpu", dtype or state[n].dtype).contiguous() for n in names}
        write_tensors(part, directory / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    if len(shards) > 1:  # last, so that it never names a shard that is not there
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(directory / INDEX, index)
