"""Prompts with their completions as one padding-free row of tokens.

Shapes: T tokens of the row, N completion tokens, S completions.

A prompt that several completions share goes through the model once; each completion is a branch
that sees the prompt and itself. A completion's last token predicts nothing, so it is not fed:
for completions of one token (pivots) the row is the prompt alone, and both log-probabilities are
read at its last position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phikit.models.decoder import Decoder
from phikit.train.adapters import head
from phikit.train.attention import confined
from phikit.train.losses import TokenLogprobs, token_logprobs

ROUND = 64  # tokens

Ids = Sequence[int]
Tree = tuple[Ids, Sequence[Ids]]  # a prompt and its completions


@dataclass(frozen=True)
class Forest:
    """Trees, one after the other in a single row.

    Attributes:
        ids_1T, positions_1T, segments_1T, branches_1T: what the model and `confined` take.
        reads_N: at which position of the row each completion token is predicted.
        targets_N: the completion tokens.
        owners_N: the completion, 0 to S - 1, that each belongs to.
        lengths_S: tokens per completion.
    """

    ids_1T: Tensor
    positions_1T: Tensor
    segments_1T: Tensor
    branches_1T: Tensor
    reads_N: Tensor
    targets_N: Tensor
    owners_N: Tensor
    lengths_S: Tensor

    @property
    def tokens(self) -> int:
        """Tokens computed, padding not counted."""
        return int((self.segments_1T != 0).sum())

    @property
    def context(self) -> float:
        """Sum over the tokens of the positions each attends to."""
        return float((self.positions_1T + 1)[self.segments_1T != 0].sum())

    def logprobs(
        self, model: Decoder, temperature: float = 1.0, entropy: bool = False
    ) -> TokenLogprobs:
        """Log-probability, and entropy if it is asked for, at every completion token [N]."""
        attend = confined(self.segments_1T, self.branches_1T)
        hidden_1TD = model.hidden(self.ids_1T, self.positions_1T, attend=attend)
        hidden_ND = hidden_1TD[0].index_select(0, self.reads_N)
        return token_logprobs(*head(model, hidden_ND), self.targets_N, temperature, entropy)

    def per_completion(self, values_N: Tensor) -> Tensor:
        """Sums over each completion's tokens [S]."""
        return values_N.new_zeros(len(self.lengths_S)).index_add(0, self.owners_N, values_N)


def size(tree: Tree) -> int:
    """Tokens that a tree takes in the row."""
    prompt, completions = tree
    return len(prompt) + sum(len(c) - 1 for c in completions)


def plant(trees: Sequence[Tree]) -> Forest:
    """Lays out trees; every prompt and every completion has at least one token.

    Past the last one the row is filled up to a round length with tokens of no document.
    """
    ids: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    branches: list[int] = []
    reads: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    lengths: list[int] = []
    for number, (prompt, completions) in enumerate(trees, 1):
        root = len(ids) + len(prompt) - 1
        ids += prompt
        positions += range(len(prompt))
        branches += [0] * len(prompt)
        for branch, completion in enumerate(completions, 1):
            fed = len(completion) - 1
            reads += [root, *range(len(ids), len(ids) + fed)]
            ids += completion[:-1]
            positions += range(len(prompt), len(prompt) + fed)
            branches += [branch] * fed
            targets += completion
            owners += [len(lengths)] * len(completion)
            lengths.append(len(completion))
        segments += [number] * (len(ids) - len(segments))
    # round lengths: tensors of ever other sizes, step after step, leave the heap full of holes
    fill = [0] * (-len(ids) % ROUND)
    row = (torch.tensor([x + fill]) for x in (ids, positions, segments, branches))
    return Forest(*row, *(torch.tensor(x) for x in (reads, targets, owners, lengths)))


def groups(sizes: Sequence[int], most: int, lanes: int = 1) -> list[list[int]]:
    """Consecutive indices in groups whose sizes sum to at most `most` (at least one each).

    With `lanes`, the groups are small enough that each lane gets one.
    """
    most = min(most, -(-sum(sizes) // lanes) + max(sizes, default=0) // 2)
    result: list[list[int]] = []
    total = 0
    for index, n in enumerate(sizes):
        if not result or total + n > most:
            result.append([])
            total = 0
        result[-1].append(index)
        total += n
    return result
