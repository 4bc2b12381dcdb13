"""Our side: the models as `phikit.load` gives them, trained as `phikit train` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import filled
from torch import Tensor
from worker import documents, ids_of

from phikit.memory import keep_freed_memory
from phikit.models.decoder import Decoder
from phikit.train.attention import confined
from phikit.train.fast import fast_layers
from phikit.train.losses import cross_entropy


class Ours:
    def __init__(self, name: str, weights: Path, tokens: int) -> None:
        keep_freed_memory()  # as `phikit train` and `phikit run` do
        self.model: Any = filled(name, weights).train()
        self.tokens = tokens
        self.ids_1L = ids_of(tokens, self.model.config.vocab_size)
        lengths = torch.tensor(documents(tokens))
        self.segments_1L = torch.arange(1, len(lengths) + 1).repeat_interleave(lengths)[None]
        self.positions_1L = torch.cat([torch.arange(n) for n in lengths.tolist()])[None]
        self.targets_1L = next_tokens(self.ids_1L, torch.ones_like(self.ids_1L))
        self.packed_targets_1L = next_tokens(self.ids_1L, self.segments_1L)
        self.compiled = torch.compile(self.model)

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.model.parameters())

    def call(self, mode: str, work: str) -> Callable[[], Tensor]:
        compiled = mode == "compiled"
        if work == "forward":
            # the length is said: reading it off the positions would break a compiled graph
            way = {"rope_length": self.tokens} if isinstance(self.model, Decoder) else {}
            return lambda: (self.compiled if compiled else self.model)(self.ids_1L, **way)
        if isinstance(self.model, Decoder):
            return lambda: self.dense(compiled, work == "packed")
        return lambda: self.flash(compiled, work == "packed")

    def dense(self, compiled: bool, packed: bool) -> Tensor:
        """The next-token objective's way: documents confined, no logits in whole."""
        segments = self.segments_1L if packed else torch.ones_like(self.ids_1L)
        positions = self.positions_1L if packed else torch.arange(self.tokens)[None]
        for layer in self.model.model.layers:
            if compiled and layer._compiled_call_impl is None:
                layer.compile()
            elif not compiled:
                layer._compiled_call_impl = None
        if compiled:
            hidden_1LD = self.model.hidden(self.ids_1L, positions, confined(segments))
        else:
            with fast_layers(self.model):
                hidden_1LD = self.model.hidden(self.ids_1L, positions, confined(segments))
        return self.loss(hidden_1LD, packed)

    def flash(self, compiled: bool, packed: bool) -> Tensor:
        hidden = self.compiled.hidden if compiled else self.model.hidden
        return self.loss(hidden(self.ids_1L, self.segments_1L if packed else None), packed)

    def loss(self, hidden_1LD: Tensor, packed: bool) -> Tensor:
        targets_L = (self.packed_targets_1L if packed else self.targets_1L)[0]
        kept = targets_L >= 0
        found = cross_entropy(hidden_1LD[0, kept], self.model.lm_head.weight, targets_L[kept])
        return found.loss / int(kept.sum())


def next_tokens(ids_1L: Tensor, segments_1L: Tensor) -> Tensor:
    """Each position's target: the next token of its document, or -1."""
    targets_1L = torch.full_like(ids_1L, -1)
    same = segments_1L[:, 1:] == segments_1L[:, :-1]
    targets_1L[:, :-1] = torch.where(same, ids_1L[:, 1:], -1)
    return targets_1L
