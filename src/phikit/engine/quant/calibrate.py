"""GPTQ over a whole model, one layer in memory at a time.

The calibration tokens go through the model layer by layer. What goes into a layer's matrices is
gathered, the matrices are rounded for it, and the rounded layer computes what the next one sees.

Shapes: B sequences, L positions, D model width, K columns of a matrix.
"""

from __future__ import annotations

import copy
import pydoc_data.topics as topics  # type: ignore[import-not-found,import-untyped,unused-ignore]
from collections.abc import Sequence
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
from phikit.models.decoder import Decoder, rope_tables

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
    def run(self, progress: Progress = lambda name, part: None) -> dict[str, tuple[Tensor, Tensor]]:
        """Packed data and scales of every quantised layer."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        model, config = self.model, self.model.config
        length = self.ids_BL.shape[1]
        rope = rope_tables(config, torch.arange(length)[None])
        embedding = self._dense["model.embed_tokens.weight"]
        x_BLD = nn.functional.embedding(self.ids_BL, embedding).to(torch.bfloat16)
        for index in range(config.layers):
            prefix = f"model.layers.{index}."
            layer = self._filled(copy.deepcopy(model.model.layers[index]), prefix)
            names = [n for n in self.layers if n.startswith(prefix)]
            inputs = self._watch(layer, {n: n.removeprefix(prefix) for n in names})
            self._through(layer, x_BLD, rope)
            for name in names:
                found[name] = self._round(name, inputs.pop(name))
                self._replace(layer, name.removeprefix(prefix), name, found[name])
                progress(name, (index + 1) / (config.layers + 1))
            x_BLD = self._through(layer, x_BLD, rope)
        if "lm_head" in self.layers:
            norm = self._filled(copy.deepcopy(model.model.norm), "model.norm.")
            seen = gptq.Inputs(config.hidden_size)
            seen.add(norm(x_BLD))
            found["lm_head"] = self._round("lm_head", seen)
        return found

    def _filled(self, module: nn.Module, prefix: str) -> nn.Module:
        module = module.to(torch.bfloat16).to_empty(device="cpu")
        for name, parameter in module.named_parameters():
            parameter.copy_(self._dense[prefix + name])
        return module

    def _watch(self, layer: nn.Module, names: dict[str, str]) -> dict[str, gptq.Inputs]:
        """Gathers what goes into the layer's matrices, until they are replaced."""
        inputs: dict[str, gptq.Inputs] = {}

        def watch(name: str, module: nn.Linear) -> None:
            inputs[name] = gptq.Inputs(module.in_features)
            seen = inputs[name]
            module.register_forward_pre_hook(lambda _, args: seen.add(args[0]))

        for name, inner in names.items():
            module = layer.get_submodule(inner)
            assert isinstance(module, nn.Linear)
            watch(name, module)
        return inputs

    def _through(self, layer: nn.Module, x_BLD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        step = max(1, _TOGETHER // x_BLD.shape[1])
        return torch.cat([layer(x, rope, self.model.attend) for x in x_BLD.split(step)])

    def _round(self, name: str, seen: gptq.Inputs) -> tuple[Tensor, Tensor]:
        scheme = self.layers[name]
        q_NK, scale_NS = gptq.quantise(self._dense[f"{name}.weight"], scheme, seen.moment_KK)
        return pack(q_NK, scale_NS, scheme.kind)

    def _replace(
        self, layer: nn.Module, inner: str, name: str, packed: tuple[Tensor, Tensor]
    ) -> None:
        QuantLinear.like(layer, inner, self.layers[name], name).take(*packed)


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
        PhikitError: as `files.convert`; for GPTQ also `Calibration`, or a tokenizer is missing.
    """
    if how.method == "rtn":
        files.convert(source, out, how, progress=progress)
        return
    config, _ = files.skeleton(source)
    tokenizer = Tokenizer.load(source)
    ids_BL = sequences(
        texts or documentation(held_out=False), tokenizer, count,
        min(length, config.max_positions), config.vocab_size,
    )  # fmt: skip
    found = Calibration(source, how, ids_BL).run(progress)
    files.convert(source, out, how, found.__getitem__)
