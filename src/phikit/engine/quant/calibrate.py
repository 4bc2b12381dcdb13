"""GPTQ over a whole model, one layer in memory at a time.

The calibration tokens go through the model matrix by matrix. What goes into a matrix is gathered,
the matrix is rounded for it, and the rounded one computes what the next one sees: each product is
computed once.

Shapes: B sequences, L positions, D model width, K columns of a matrix.
"""

from __future__ import annotations

import copy
import pydoc_data.topics as topics  # type: ignore[import-not-found,import-untyped,unused-ignore]
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from phikit.chat.tokenizer import Tokenizer
from phikit.engine.quant import files, gptq, settings
from phikit.engine.quant.files import Progress
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import pack
from phikit.engine.quant.settings import Settings
from phikit.errors import PhikitError
from phikit.models.decoder import Attend, Decoder, Layer, rope_tables

_TOGETHER = 2048  # positions computed at once


def documentation(held_out: bool) -> list[str]:
    """Python's language reference as it comes with every Python: real text, in two halves.

    Calibration reads one half and quality is measured on the other.
    """
    names = sorted(topics.topics)
    return [topics.topics[name] for name in names[int(held_out) :: 2]]


def sequences(
    texts: Sequence[str], tokenizer: Tokenizer, count: int, length: int, vocab_size: int
) -> Tensor:
    """The texts' tokens, end to end, cut into sequences: [count, length].

    Raises:
        PhikitError: there is too little text, or it has ids that the model has not.
    """
    ids: list[int] = []
    for text in texts:
        if len(ids) >= count * length:
            break
        ids += tokenizer.encode(text + "\n\n")
    if len(ids) < length:
        raise PhikitError(
            f"the texts have {len(ids)} tokens; one sequence needs {length}", "give more text"
        )
    if max(ids) >= vocab_size:
        raise PhikitError(f"the tokenizer gives id {max(ids)}; the model has {vocab_size}")
    count = min(count, len(ids) // length)
    return torch.tensor(ids[: count * length]).view(count, length)


class Calibration:
    """Rounds the matrices of a dense decoder for the inputs that real text gives them.

    Args:
        source: a dense model directory.
        ids_BL: the calibration tokens.

    Raises:
        PhikitError: the model is no dense decoder.
    """

    def __init__(self, source: Path, how: Settings, ids_BL: Tensor) -> None:
        _, model = files.skeleton(source)
        if not isinstance(model, Decoder):
            raise PhikitError(
                f"{source}: GPTQ runs dense decoders; this is a {type(model).__name__}",
                "use --method rtn",
            )
        self.model, self.ids_BL = model, ids_BL
        self.layers = settings.targets(model, how)
        self._dense = dict(files.dense_tensors(source))
        for name, others in files.twins(model).items():
            for other in others:
                self._dense.setdefault(other, self._dense[name])

    @torch.no_grad()
    def run(
        self, progress: Progress = lambda name, part: None
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, packed data and scales of every quantised layer, as they come."""
        model, config = self.model, self.model.config
        length = self.ids_BL.shape[1]
        rope = rope_tables(config, torch.arange(length)[None])
        embedding = self._dense["model.embed_tokens.weight"]
        x_BLD = nn.functional.embedding(self.ids_BL, embedding).to(torch.bfloat16)
        for index in range(config.layers):
            prefix = f"model.layers.{index}."
            layer = self._filled(copy.deepcopy(model.model.layers[index]), prefix)
            assert isinstance(layer, Layer)
            for inner, seen in (steps := self._steps(layer, x_BLD, rope)):
                name = prefix + inner
                if name in self.layers:
                    packed = self._round(name, seen)
                    QuantLinear.like(layer, inner, self.layers[name], name).take(*packed)
                    yield name, *packed
                    progress(name, (index + 1) / (config.layers + 1))
                del seen
            x_BLD = steps.end_BLD
        if "lm_head" in self.layers:
            norm = self._filled(copy.deepcopy(model.model.norm), "model.norm.")
            seen = gptq.Inputs(config.hidden_size)
            seen.add(norm(x_BLD))
            yield "lm_head", *self._round("lm_head", seen)

    def _filled(self, module: nn.Module, prefix: str) -> nn.Module:
        module = module.to(torch.bfloat16).to_empty(device="cpu")
        for name, parameter in module.named_parameters():
            parameter.copy_(self._dense[prefix + name])
        return module

    def _steps(self, layer: Layer, x_BLD: Tensor, rope: tuple[Tensor, Tensor]) -> _Steps:
        step = max(1, _TOGETHER // x_BLD.shape[1])
        return _Steps(layer, list(x_BLD.split(step)), rope, self.model.attend)

    def _round(self, name: str, seen: gptq.Inputs) -> tuple[Tensor, Tensor]:
        scheme = self.layers[name]
        q_NK, scale_NS = gptq.quantise(self._dense[f"{name}.weight"], scheme, seen.moment_KK)
        return pack(q_NK, scale_NS, scheme.kind)


class _Steps:
    """A layer's calibration tokens on their way through it.

    Iterating gives the name of each matrix in turn, and what goes into it; by the next one the
    matrix may be another. `end_BLD` is what comes out of the layer then.
    """

    def __init__(
        self, layer: Layer, parts: list[Tensor], rope: tuple[Tensor, Tensor], attend: Attend
    ) -> None:
        self.layer, self.parts, self.rope, self.attend = layer, parts, rope, attend
        self.end_BLD = torch.empty(0)

    def __iter__(self) -> Iterator[tuple[str, gptq.Inputs]]:
        layer, x = self.layer, self.parts
        attention, mlp = layer.self_attn, layer.mlp
        normed = [layer.input_layernorm(part) for part in x]
        yield "self_attn.qkv_proj", _inputs(normed)
        with _without(attention, "o_proj"):
            attended = [attention(part, self.rope, self.attend) for part in normed]
        yield "self_attn.o_proj", _inputs(attended)
        x = [a + attention.o_proj(b) for a, b in zip(x, attended, strict=True)]
        normed = [layer.post_attention_layernorm(part) for part in x]
        yield "mlp.gate_up_proj", _inputs(normed)
        with _without(mlp, "down_proj"):
            gated = [mlp(part) for part in normed]
        yield "mlp.down_proj", _inputs(gated)
        self.end_BLD = torch.cat([a + mlp.down_proj(b) for a, b in zip(x, gated, strict=True)])


def _inputs(parts: Sequence[Tensor]) -> gptq.Inputs:
    seen = gptq.Inputs(parts[0].shape[-1])
    for part in parts:
        seen.add(part)
    return seen


@contextmanager
def _without(module: nn.Module, last: str) -> Iterator[None]:
    """Has a module give what would go into its last matrix."""
    kept = getattr(module, last)
    setattr(module, last, nn.Identity())
    try:
        yield
    finally:
        setattr(module, last, kept)


def quantise(
    source: Path,
    out: Path,
    how: Settings,
    texts: Sequence[str] | None = None,
    count: int = 32,
    length: int = 512,
    progress: Progress = lambda name, part: None,
) -> None:
    """Writes the quantised copy of a model directory, by the method that the settings name.

    Args:
        texts: for calibration; half of Python's documentation when left out.
        count, length: how many calibration sequences, and their tokens.

    Raises:
        PhikitError: as `files.convert` and `files.check_place`; for GPTQ also `Calibration`, or a
            tokenizer is missing.
    """
    files.check_place(out)
    if how.method == "rtn":
        files.convert(source, out, how, progress=progress)
        return
    config, _ = files.skeleton(source)
    tokenizer = Tokenizer.load(source)
    ids_BL = sequences(
        texts or documentation(held_out=False), tokenizer, count,
        min(length, config.max_positions), config.vocab_size,
    )  # fmt: skip
    files.convert(source, out, how, Calibration(source, how, ids_BL).run(progress))
