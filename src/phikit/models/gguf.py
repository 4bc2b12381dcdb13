"""GGUF files, llama.cpp's format: read memory-mapped, turned into a model.

A file is a header of typed metadata, a list of tensors, and their data. The tensors of llama- and
phi3-shaped models become those of a `Decoder`, under the published names.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phikit.errors import PhikitError
from phikit.files import explain_os_errors
from phikit.models.checkpoint import fill, fuse_llama
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig, LongRope
from phikit.models.quants import FORMATS, OTHERS, Format, decode

_CHUNK = 2**22  # weights that are decoded at once, so that float32 copies stay small
# type number → struct code of a single value
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is in the file. `shape` is torch's order: the innermost dimension last."""

    shape: tuple[int, ...]
    form: Format
    offset: int

    @property
    def weights(self) -> int:
        """How many numbers the tensor holds."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return self.weights // self.form.weights * self.form.bytes


class GGUF:
    """An open file: `metadata` by key, `tensors` by name, `tensor` to read one.

    Raises:
        PhikitError: it is no GGUF file of version 2 or 3, is truncated, or holds a tensor type
            that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explain_os_errors(path, "reading"), path.open("rb") as file:
            size = path.stat().st_size
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._at = 0
        if bytes(self._data[:4]) != b"GGUF":
            raise PhikitError(f"{path}: not a GGUF file (it begins {bytes(self._data[:4])!r})")
        try:
            self.metadata, self.tensors = self._header()
        except struct.error as e:
            raise PhikitError(f"{path}: the file ends within its header", _AGAIN) from e
        for name, info in self.tensors.items():
            if info.offset + info.bytes > len(self._data):
                raise PhikitError(f"{path}: the file ends within the tensor {name!r}", _AGAIN)

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One tensor, decoded straight into a precision."""
        info = self.tensors[name]
        out = torch.empty(info.weights, dtype=dtype)
        raw = np.frombuffer(self._data, np.uint8, info.bytes, info.offset)
        step = _CHUNK // info.form.weights
        for first in range(0, info.weights // info.form.weights, step):
            part = decode(raw[first * info.form.bytes :][: step * info.form.bytes], info.form)
            begin = first * info.form.weights
            # copied even when nothing is to be decoded: the file's memory cannot be written to
            out[begin : begin + len(part)] = torch.from_numpy(part.copy())
        return out.view(info.shape)

    def need(self, key: str) -> Any:
        """A value of the metadata.

        Raises:
            PhikitError: it is not there.
        """
        if key not in self.metadata:
            raise PhikitError(f"{self.path}: the key {key!r} is missing from the metadata")
        return self.metadata[key]

    # --- the header ------------------------------------------------------------------------------

    def _header(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise PhikitError(
                f"{self.path}: GGUF version {version}; versions 2 and 3 are read",
                "convert the model again with a current converter",
            )
        count, pairs = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        found = []
        for _ in range(count):
            name = self._string()
            shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))[::-1]
            found.append((name, shape, self._scalar("I"), self._scalar("Q")))
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-self._at // alignment) * alignment
        return metadata, {
            name: TensorInfo(shape, self._format(name, shape, kind), start + offset)
            for name, shape, kind, offset in found
        }

    def _format(self, name: str, shape: tuple[int, ...], kind: int) -> Format:
        if kind not in FORMATS:
            raise PhikitError(
                f"{self.path}: the tensor {name!r} is {OTHERS.get(kind, f'of type {kind}')}, "
                "which is not read",
                "give a file in one of " + ", ".join(f.name for f in FORMATS.values()),
            )
        form = FORMATS[kind]
        if not shape or shape[-1] % form.weights:
            raise PhikitError(
                f"{self.path}: the tensor {name!r} of shape {shape} does not divide into "
                f"{form.name} blocks of {form.weights}"
            )
        return form

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        if self._at + length > len(self._data):
            raise struct.error("the string is cut off")
        self._at += length
        return bytes(self._data[self._at - length : self._at]).decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, length = self._scalar("I"), self._scalar("Q")
            return [self._value(inner) for _ in range(length)]
        if kind not in _SCALARS:
            raise PhikitError(f"{self.path}: the metadata has a value of unknown type {kind}")
        return self._scalar(_SCALARS[kind])


_AGAIN = "fetch the file again"


# --- the model -----------------------------------------------------------------------------------

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")


def config_of(file: GGUF) -> DecoderConfig:
    """The decoder's shape from the metadata.

    Raises:
        PhikitError: the architecture is neither llama nor phi3, or a value is missing.
    """
    kind = file.need("general.architecture")
    if kind not in ("llama", "phi3"):
        raise PhikitError(
            f"{file.path}: the architecture {kind!r} is not one that phikit reads from GGUF",
            "llama and phi3 are",
        )

    def value(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"{kind}.{key}", default)

    hidden = int(file.need(f"{kind}.embedding_length"))
    heads = int(file.need(f"{kind}.attention.head_count"))
    head_dim = int(value("attention.key_length", hidden // heads))
    eos = [file.metadata.get(f"tokenizer.ggml.{k}_token_id") for k in ("eos", "eot")]
    return DecoderConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=hidden,
        intermediate_size=int(file.need(f"{kind}.feed_forward_length")),
        layers=int(file.need(f"{kind}.block_count")),
        heads=heads,
        kv_heads=int(value("attention.head_count_kv", heads)),
        head_dim=head_dim,
        max_positions=int(file.need(f"{kind}.context_length")),
        rope_theta=float(value("rope.freq_base", 10_000.0)),
        rope_fraction=int(value("rope.dimension_count", head_dim)) / head_dim,
        long_rope=_long_rope(file, value("rope.scaling.original_context_length")),
        sliding_window=int(value("attention.sliding_window", 0)) or None,  # phi-4 writes 0
        norm_eps=round(float(file.need(f"{kind}.attention.layer_norm_rms_epsilon")), 12),
        tied="output.weight" not in file.tensors,
        bos_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_ids=tuple(dict.fromkeys(i for i in eos if i is not None)),
        pad_id=file.metadata.get("tokenizer.ggml.padding_token_id"),
    )


def tensors_of(file: GGUF, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yields (published name, tensor) one by one, fused as phi's are.

    Raises:
        PhikitError: a tensor has no place in a dense decoder.
    """
    return fuse_llama(_renamed(file, dtype))


def load_gguf(
    path: Path, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu"
) -> Decoder:
    """Loads a GGUF file as a decoder with unquantised weights.

    Raises:
        PhikitError: as `GGUF`, `config_of` and `checkpoint.fill`.
    """
    file = GGUF(path)
    config = config_of(file)
    with torch.device("meta"):
        model = Decoder(config)
    model = model.to(dtype).to_empty(device=device)
    if config.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    fill(model, tensors_of(file, dtype), str(path))
    return model.eval()


def _long_rope(file: GGUF, original: int | None) -> LongRope | None:
    if _FACTORS[0] not in file.tensors:
        return None
    if original is None:
        raise PhikitError(f"{file.path}: it has LongRoPE's factors but no original length")
    short, long = (tuple(file.tensor(name).tolist()) for name in _FACTORS)
    return LongRope(short, long, int(original))


def _renamed(file: GGUF, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    config = config_of(file)
    llama = file.metadata["general.architecture"] == "llama"
    undo: dict[str, Callable[[Tensor], Tensor]] = {
        "attn_q": lambda w: _unpermute(w, config.heads),
        "attn_k": lambda w: _unpermute(w, config.kv_heads),
    }
    for name, info in file.tensors.items():
        if name in _OUTER:
            yield _OUTER[name], file.tensor(name, dtype)
            continue
        if name in _FACTORS:
            continue  # part of the configuration
        inner = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if inner is None or inner[2] not in _INNER:
            raise PhikitError(
                f"{file.path}: the tensor {name!r} {info.shape} has no place in a dense decoder"
            )
        tensor, target = file.tensor(name, dtype), _INNER[inner[2]]
        if llama and inner[2] in undo:
            tensor = undo[inner[2]](tensor)
        if inner[2] == "ffn_up" and not llama:
            target = "mlp.gate_up_proj"  # phi3 has both in one
        yield f"model.layers.{inner[1]}.{target}.weight", tensor


def _unpermute(w_OD: Tensor, heads: int) -> Tensor:
    """Puts the rows of a query or key matrix back into the published order.

    llama.cpp rotates neighbouring dimensions of a head, the published models its two halves; the
    converter interleaves the halves' rows, for llama-shaped models only.
    """
    rows, columns = w_OD.shape
    w_HR2D = w_OD.view(heads, rows // heads // 2, 2, columns)
    return w_HR2D.transpose(1, 2).reshape(rows, columns)
