"""How probable given completions are under a model: one forward pass, no generation.

Shapes: B sequences, L positions, S scored positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from phikit.engine.logits import head_product
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder

_TOKENS = 8192  # positions per forward pass
_LOGITS = 1 << 24  # logits held at once


@torch.no_grad()
def logprobs(
    model: Decoder,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    temperature: float = 1.0,
) -> list[list[float]]:
    """The log-probability of every completion token, given the prompt and the tokens before it.

    Args:
        sequences: (prompt ids, completion ids); a prompt has at least one id.
        temperature: divides the logits.

    Raises:
        PhikitError: a prompt is empty, or a sequence is longer than the model's context.
    """
    if temperature <= 0:
        raise PhikitError(f"temperature is {temperature}; scoring needs one above 0")
    for index, (prompt, completion) in enumerate(sequences):
        total, most = len(prompt) + len(completion), model.config.max_positions
        if not len(prompt):
            raise PhikitError(f"sequence {index}: the prompt is empty")
        if total > most:
            raise PhikitError(f"sequence {index} has {total} tokens; the context is {most}")
    lengths = [len(p) + len(c) - 1 for p, c in sequences]  # the last token is only predicted
    order = sorted(range(len(sequences)), key=lambda i: (-lengths[i], i))
    results: list[list[float]] = [[] for _ in sequences]
    while order:
        group = _group(model, [lengths[i] for i in order])
        for i, scores in zip(
            order[:group], _score(model, [sequences[i] for i in order[:group]], temperature),
            strict=True,
        ):  # fmt: skip
            results[i] = scores
        order = order[group:]
    return results


def _group(model: Decoder, lengths: list[int]) -> int:
    """How many of the sequences (longest first) go through together."""
    count = max(1, _TOKENS // max(1, lengths[0]))
    if (long := model.config.long_rope) is not None and lengths[0] > long.original_max_positions:
        # sequences on either side of the original length turn by other factors
        count = min(count, sum(n > long.original_max_positions for n in lengths))
    return min(count, len(lengths))


def _score(
    model: Decoder, sequences: list[tuple[Sequence[int], Sequence[int]]], temperature: float
) -> list[list[float]]:
    device = model.model.embed_tokens.weight.device
    longest = max(1, max(len(p) + len(c) - 1 for p, c in sequences))
    ids_BL = torch.zeros(len(sequences), longest, dtype=torch.int64)
    row_S: list[int] = []
    at_S: list[int] = []
    target_S: list[int] = []
    for row, (prompt, completion) in enumerate(sequences):
        ids = [*prompt, *completion][:-1] if completion else list(prompt)[:longest]
        ids_BL[row, : len(ids)] = torch.tensor(ids)
        row_S += [row] * len(completion)
        at_S += range(len(prompt) - 1, len(prompt) - 1 + len(completion))
        target_S += completion
    # padding is on the right, where causal attention keeps it from being seen
    hidden_SD = model.hidden(ids_BL.to(device))[row_S, at_S]
    targets = torch.tensor(target_S, dtype=torch.int64, device=device)
    step = max(1, _LOGITS // model.config.vocab_size)
    product = None
    if type(model.lm_head) is nn.Linear:
        product = head_product(model.lm_head.weight, len(target_S))
    product = product or model.lm_head
    found: list[float] = []
    for start in range(0, len(target_S), step):
        logits_SV = product(hidden_SD[start : start + step]).float() / temperature
        logp_SV = F.log_softmax(logits_SV, dim=-1)
        found += logp_SV.gather(1, targets[start : start + step, None])[:, 0].tolist()
    scores, start = [], 0
    for _, completion in sequences:
        scores.append(found[start : start + len(completion)])
        start += len(completion)
    return scores
