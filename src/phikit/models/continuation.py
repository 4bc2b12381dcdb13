"""The continuation of a prompt that is given as embeddings, token by token, with a cache.

The plain way from a prompt with pictures or sounds to an answer: one prompt at a time. The engine
has batches and shared prompts for prompts of tokens. How a token is drawn is the caller's business.

Shapes: L positions held, T new positions, D model width, H query heads, G key-value heads, K head
size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from phikit.models.decoder import Attend, Decoder

#: logits [1, V] → the token that comes next
Choose = Callable[[Tensor], int]


def likeliest(logits_1V: Tensor) -> int:
    """The most probable token; of equals the first."""
    return int(logits_1V.argmax())


class Cached:
    """An `Attend` that keeps keys and values, for one row.

    The prompt goes through whole, under its own rule; then each new position attends to all that
    is kept, or to the latest `window` positions.
    """

    def __init__(self, prompt: Attend, window: int | None) -> None:
        self.prompt, self.window = prompt, window
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q_1HTK: Tensor, k_1GTK: Tensor, v_1GTK: Tensor) -> Tensor:
        if layer not in self.kept:
            self.kept[layer] = k_1GTK, v_1GTK
            return self.prompt(layer, q_1HTK, k_1GTK, v_1GTK)
        old_k, old_v = self.kept[layer]
        k_1GLK, v_1GLK = torch.cat((old_k, k_1GTK), 2), torch.cat((old_v, v_1GTK), 2)
        self.kept[layer] = k_1GLK, v_1GLK
        if self.window:
            k_1GLK, v_1GLK = k_1GLK[:, :, -self.window :], v_1GLK[:, :, -self.window :]
        return F.scaled_dot_product_attention(
            q_1HTK, k_1GLK, v_1GLK, enable_gqa=q_1HTK.shape[1] != k_1GLK.shape[1]
        )


@torch.no_grad()
def generate(
    model: Decoder,
    inputs_embeds_1LD: Tensor,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    attend: Attend | None = None,
    choose: Choose = likeliest,
) -> Iterator[int]:
    """Yields the ids of the continuation one by one, an end token included.

    Where LongRoPE changes its factors, what is kept was rotated by others, so everything is
    computed anew once.

    Args:
        inputs_embeds_1LD: the prompt, as the decoder's input.
        stop_ids: tokens that end it.
        attend: what the prompt's positions attend to; the model's own rule when left out.
        choose: draws each token.
    """
    config, rule = model.config, attend or model.attend
    window = config.sliding_window
    window = window if window and window < config.max_positions else None
    border = config.long_rope.original_max_positions if config.long_rope else None
    inputs_1LD = inputs_embeds_1LD
    cache = Cached(rule, window)
    fresh = 0  # where the positions begin that have not gone through the model
    for _ in range(max_tokens):
        length = inputs_1LD.shape[1]
        if border is not None and length == border + 1 and fresh:
            cache, fresh = Cached(_widened(rule, inputs_embeds_1LD.shape[1], model), window), 0
        position_1T = torch.arange(fresh, length, device=inputs_1LD.device)[None]
        hidden_1TD = model.hidden(
            position_1T, position_1T, cache, length, inputs_embeds_BLD=inputs_1LD[:, fresh:]
        )
        chosen = choose(model.lm_head(hidden_1TD[:, -1]))
        yield chosen
        if chosen in stop_ids:
            return
        fresh = length
        step_11 = torch.tensor([[chosen]], device=inputs_1LD.device)
        inputs_1LD = torch.cat((inputs_1LD, model.model.embed_tokens(step_11)), 1)


def _widened(rule: Attend, prompt: int, model: Decoder) -> Attend:
    """A prompt's rule for a longer row: what follows the prompt attends by the model's own rule."""
    if rule is model.attend:
        return rule

    def attend(layer: int, q_1HLK: Tensor, k_1GLK: Tensor, v_1GLK: Tensor) -> Tensor:
        head = rule(layer, *(t[:, :, :prompt] for t in (q_1HLK, k_1GLK, v_1GLK)))
        rest = model.attend(layer, q_1HLK, k_1GLK, v_1GLK)[:, :, prompt:]
        return torch.cat((head, rest), 2)

    return attend
