"""Direct preference optimisation on token ids: whole answers, or the single tokens of pivots.

Source: Rafailov et al. 2023 (arXiv 2305.18290); on single tokens: phi-4 report, section 4.3.
Shapes: P pairs; the completions of a forest are chosen, rejected, chosen, rejected, ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from phikit.files import write_atomic
from phikit.models.decoder import Decoder
from phikit.records import Pair
from phikit.train.fast import fast_layers
from phikit.train.held import weights_held
from phikit.train.loop import Loss, StepBatch, autocast
from phikit.train.objectives.dpo_settings import DpoLoss
from phikit.train.objectives.trees import Forest, Tree, groups, plant, size

_SHUFFLE = 0x64706F  # the random stream of pair orders


@dataclass(frozen=True)
class PairBatch:
    """Pairs as a forest, with the reference's summed log-probabilities of each completion."""

    forest: Forest
    reference_2P: Tensor


def tree(pair: Pair) -> Tree:
    """The pair as a tree: a prompt that both completions share."""
    return pair.prompt_ids, (pair.chosen_ids, pair.rejected_ids)


def dpo_loss(
    policy_2P: Tensor, reference_2P: Tensor, lengths_2P: Tensor, settings: DpoLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss and summed metrics from summed log-probabilities, chosen and rejected in turn."""
    gain_2P = policy_2P - reference_2P
    if settings.length_normalised:
        gain_2P = gain_2P / lengths_2P
    reward_P2 = settings.beta * gain_2P.view(-1, 2)
    margin_P = reward_P2[:, 0] - reward_P2[:, 1]
    smoothing = settings.label_smoothing
    loss_P = -(1 - smoothing) * F.logsigmoid(margin_P) - smoothing * F.logsigmoid(-margin_P)
    if settings.anchor:
        loss_P = loss_P - settings.anchor * (policy_2P / lengths_2P)[::2]
    rewards_P2 = reward_P2.detach()
    metrics = {
        "accuracy": (margin_P.detach() > 0).sum(),
        "margin": margin_P.detach().sum(),
        "reward_chosen": rewards_P2[:, 0].sum(),
        "reward_rejected": rewards_P2[:, 1].sum(),
    }
    return loss_P.sum(), metrics


@torch.no_grad()
def reference_logprobs(
    model: Decoder, pairs: Sequence[Pair], tokens: int, precision: str
) -> Tensor:
    """Summed log-probabilities of every chosen and rejected completion, [pairs, 2]."""
    trees = [tree(p) for p in pairs]
    order = sorted(range(len(trees)), key=lambda i: (size(trees[i]), i))
    result_P2 = torch.empty(len(pairs), 2)
    with fast_layers(model), autocast(model, precision), weights_held():
        for group in groups([size(trees[i]) for i in order], tokens):
            chosen = [order[i] for i in group]
            forest = plant([trees[i] for i in chosen])
            logprobs_N = forest.logprobs(model).logprobs_N
            result_P2[chosen] = forest.per_completion(logprobs_N).view(-1, 2)
    return result_P2


def stored_reference(
    folder: Path,
    weights: Sequence[Path],
    model: Decoder,
    pairs: Sequence[Pair],
    tokens: int,
    precision: str,
) -> Tensor:
    """As `reference_logprobs`, computed once and kept in a file that names what it is of.

    Args:
        weights: the files whose content is the model's.
    """
    digest = hashlib.blake2b()
    for path in weights:
        with path.open("rb") as f:
            digest.update(hashlib.file_digest(f, "blake2b").digest())
    digest.update("/".join([precision, *(p.id for p in pairs)]).encode())
    file = folder / f"reference-{digest.hexdigest()[:16]}.safetensors"
    if not file.exists():
        result = reference_logprobs(model, pairs, tokens, precision)
        write_atomic(file, save({"logprobs": result}))
    return load_file(file)["logprobs"]


class Dpo:
    """Pairs in an order of their own each epoch; every epoch uses each once."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        reference_P2: Tensor,
        settings: DpoLoss,
        batch_pairs: int,
        micro_tokens: int,
        seed: int,
        lanes: int = 1,
    ) -> None:
        self.pairs, self.reference_P2, self.settings = pairs, reference_P2, settings
        self.batch_pairs, self.micro_tokens, self.seed = batch_pairs, micro_tokens, seed
        self.lanes = lanes
        self.done = 0
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def draw(self, step: int) -> StepBatch[PairBatch]:
        chosen = [self._at(i) for i in range(self.done, self.done + self.batch_pairs)]
        self.done += self.batch_pairs
        trees = [tree(self.pairs[i]) for i in chosen]
        micros = []
        for group in groups([size(t) for t in trees], self.micro_tokens, self.lanes):
            reference_2P = self.reference_P2[[chosen[i] for i in group]].reshape(-1)
            micros.append(PairBatch(plant([trees[i] for i in group]), reference_2P))
        tokens = sum(m.forest.tokens for m in micros)
        return StepBatch(
            micros=micros,
            weight=len(chosen),
            tokens=tokens,
            context=sum(m.forest.context for m in micros) / tokens,
            name="pairs " + ", ".join(self.pairs[i].id for i in chosen[:8]) + ", ...",
            ids=lambda: [self.pairs[i].id for i in chosen],
        )

    def loss(self, model: Decoder, micro: PairBatch) -> Loss:
        forest = micro.forest
        policy_2P = forest.per_completion(forest.logprobs(model).logprobs_N)
        return Loss(*dpo_loss(policy_2P, micro.reference_2P, forest.lengths_S, self.settings))

    def state(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state(self, state: dict[str, Any]) -> None:
        self.done = state["done"]

    def _at(self, position: int) -> int:
        """The pair at a position of the endless sequence of epochs."""
        epoch, place = divmod(position, len(self.pairs))
        if epoch != self._epoch:
            stream = np.random.default_rng([self.seed, _SHUFFLE, epoch])
            self._epoch, self._order = epoch, stream.permutation(len(self.pairs))
        return int(self._order[place])
