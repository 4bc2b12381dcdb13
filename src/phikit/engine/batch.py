"""One run of the engine over a list of requests: continuous batching.

Samples wait in a queue; as many as fit are rows of the batch. Every step feeds one token per row
and draws the next; finished rows leave at once and the last rows close the gaps; when an eighth of
the rows is free, waiting samples enter. Bookkeeping is in numpy columns, one entry per row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from phikit.engine.base import Finished, Request
from phikit.engine.cache import KVCache
from phikit.engine.decode import RopeTable, StepAttention, decode
from phikit.engine.prompts import Prompt, Prompts, seats_for
from phikit.engine.sampling import Settings, draw, stream_key, uniforms
from phikit.models.decoder import Decoder
from phikit.records import Rollout

_PREFILL_TOKENS = 8192  # positions computed at once when prompts enter


@dataclass
class Draft:
    """A sample in the making, while it is not in the batch."""

    request: int
    sample: int
    context: tuple[int, ...]  # the prompt, and what was generated before it had to wait
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)


class Rows:
    """The columns of the batch: numpy arrays with one entry per row slot."""

    def __init__(self, size: int, longest: int, stops: int) -> None:
        def whole(*shape: int) -> np.ndarray:
            return np.zeros((size, *shape), dtype=np.int64)

        self.request, self.sample = whole(), whole()
        self.key = np.zeros(size, dtype=np.uint64)
        self.count, self.limit = whole(), whole()  # tokens drawn so far, and at most
        self.chair = whole()
        self.prefix, self.own = whole(), whole()  # positions in the prompt slot, and in the row's
        self.last = whole()  # the token to feed next
        self.stop = np.full((size, stops), -1, dtype=np.int64)
        self.tokens = np.zeros((size, longest), dtype=np.int32)
        self.logprobs = np.zeros((size, longest), dtype=np.float32)
        self.raw_logprobs = np.zeros((size, longest), dtype=np.float32)
        self.prompt: list[Prompt] = []  # of the rows in use only

    def move(self, source: list[int], target: list[int]) -> None:
        for column in vars(self).values():
            if isinstance(column, np.ndarray):
                column[target] = column[source]
        for s, t in zip(source, target, strict=True):
            self.prompt[t] = self.prompt[s]


class Batch:
    """Drives a list of checked requests to their end: call `step` while `busy`."""

    @torch.inference_mode()
    def __init__(self, model: Decoder, requests: Sequence[Request], max_batch: int) -> None:
        self.model, self.requests = model, requests
        self.size = max(1, min(max_batch, sum(r.n for r in requests)))
        config = model.config
        weight = model.lm_head.weight
        self.device, dtype = weight.device, weight.dtype
        limit = config.max_positions
        self.limits = [min(r.sampling.max_tokens, limit - len(r.prompt_ids)) for r in requests]
        self.waiting: deque[Draft] = deque()
        per_prompt: dict[tuple[int, ...], int] = {}
        for index, request in enumerate(requests):
            per_prompt[request.prompt_ids] = per_prompt.get(request.prompt_ids, 0) + request.n
            self.waiting.extend(Draft(index, i, request.prompt_ids) for i in range(request.n))
        self.prompts = Prompts(seats_for(list(per_prompt.values()), self.size))
        for context, count in per_prompt.items():
            self.prompts.expect(context, count)
        stops = max((len(r.sampling.stop_ids) for r in requests), default=0)
        self.rows = Rows(self.size, max(self.limits, default=1), stops)
        self.n = 0
        self.cache = KVCache(config, dtype, self.device)
        longest = max(
            (len(r.prompt_ids) + m for r, m in zip(requests, self.limits, strict=True)), default=1
        )
        self.rope = RopeTable(config, longest, dtype, self.device)
        self.original = config.long_rope.original_max_positions if config.long_rope else longest
        self.settings: Settings | None = None
        self.tokens_generated = 0
        self.tokens_prefilled = 0

    @property
    def busy(self) -> bool:
        return bool(self.n or self.waiting)

    @property
    def newest(self) -> int:
        """The token drawn last for the first row."""
        return int(self.rows.last[0])

    def step(self) -> list[Finished]:
        """Lets waiting samples in, feeds one token per row, and returns what finished."""
        free = self.size - self.n
        if self.waiting and (self.n == 0 or free >= max(1, self.size // 8)):
            self._admit(free)
        self._advance()
        return self._leave()

    # --- a step ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        n, rows, device = self.n, self.rows, self.device
        own = rows.own[:n]
        longest_own = int(own.max()) + 1
        self.cache.fit_rows(self.size, longest_own)
        seat = np.fromiter((p.slot for p in rows.prompt), np.int64, n) * self.prompts.seats
        columns = np.stack((rows.last[:n], seat + rows.chair[:n], rows.prefix[:n], own))
        last_N, seat_N, prefix_N, own_N = torch.from_numpy(columns).to(device)
        long_N = (prefix_N + 1 > self.original).long()
        attend = StepAttention(
            self.model.config, self.cache, seat_N, prefix_N, own_N,
            prompts=len(self.prompts.slots), seats=self.prompts.seats,
        )  # fmt: skip
        rope = self.rope.at(prefix_N + own_N, long_N)
        logits_NV = decode(self.model, last_N, rope, attend).float()
        if self.settings is None:
            sampling = [self.requests[i].sampling for i in rows.request[:n]]
            self.settings = Settings.of(sampling, device)
        uniform_N = torch.from_numpy(uniforms(rows.key[:n], rows.count[:n])).to(device)
        token_N, logprob_N, raw_N = draw(logits_NV, self.settings, uniform_N)
        tokens, at = token_N.cpu().numpy(), (np.arange(n), rows.count[:n])
        rows.tokens[at] = tokens
        rows.logprobs[at] = logprob_N.cpu().numpy()
        rows.raw_logprobs[at] = raw_N.cpu().numpy()
        rows.last[:n] = tokens
        rows.count[:n] += 1
        rows.own[:n] += 1
        self.tokens_generated += n

    def _leave(self) -> list[Finished]:
        """Takes finished rows out, and those that must be computed anew; closes the gaps."""
        n, rows = self.n, self.rows
        stopped = (rows.last[:n, None] == rows.stop[:n]).any(1)
        done = stopped | (rows.count[:n] >= rows.limit[:n])
        gone = done
        if self.model.config.long_rope is not None:
            # past the original length all positions turn by the long factors: start over
            length = rows.prefix[:n] + rows.own[:n] + 1
            gone = done | ((length > self.original) & (rows.prefix[:n] + 1 <= self.original))
        if not gone.any():
            return []
        finished = []
        for row in np.flatnonzero(gone).tolist():
            self.prompts.leave(rows.prompt[row], int(rows.chair[row]))
            if done[row]:
                finished.append(self._finished(row, bool(stopped[row])))
            else:
                self._requeue(row)
        self._close_gaps(gone)
        self.settings = None
        return finished

    def _drawn(self, row: int) -> tuple[list[int], list[float], list[float]]:
        count = int(self.rows.count[row])
        return (
            self.rows.tokens[row, :count].tolist(),
            self.rows.logprobs[row, :count].tolist(),
            self.rows.raw_logprobs[row, :count].tolist(),
        )

    def _finished(self, row: int, stopped: bool) -> Finished:
        request = int(self.rows.request[row])
        tokens, logprobs, raw = self._drawn(row)
        rollout = Rollout(
            prompt_ids=self.requests[request].prompt_ids,
            completion_ids=tuple(tokens),
            logprobs=tuple(logprobs),
            raw_logprobs=tuple(raw),
            finish="stop" if stopped else "length",
        )
        return Finished(request, int(self.rows.sample[row]), rollout)

    def _requeue(self, row: int) -> None:
        request = int(self.rows.request[row])
        drawn = self._drawn(row)
        context = self.requests[request].prompt_ids + tuple(drawn[0])
        self.waiting.appendleft(Draft(request, int(self.rows.sample[row]), context, *drawn))
        self.prompts.expect(context)

    def _close_gaps(self, gone: np.ndarray) -> None:
        rows, left = self.rows, int((~gone).sum())
        target = np.flatnonzero(gone[:left]).tolist()
        source = (left + np.flatnonzero(~gone[left:])).tolist()
        if target:
            self.cache.move_rows(source, target, int(rows.own[source].max()))
            rows.move(source, target)
        del rows.prompt[left:]
        self.n = left
        source, target = self.prompts.release()
        for s, t in zip(source, target, strict=True):
            self.cache.move_prompts([s], [t])

    # --- entering --------------------------------------------------------------------------------

    def _admit(self, free: int) -> None:
        """Seats waiting samples in order, and computes the prompts that are new."""
        new: list[Prompt] = []
        for _ in range(min(free, len(self.waiting))):
            draft = self.waiting.popleft()
            prompt, chair, is_new = self.prompts.seat(draft.context)
            if is_new:
                new.append(prompt)
            self._enter(draft, prompt, chair)
        self.settings = None
        if not new:
            return
        self.cache.fit_prompts(
            len(self.prompts.slots), max(len(p.context) - 1 for p in self.prompts.slots)
        )
        self._prefill([p for p in new if p.copied_from is None])
        for prompt in new:
            if prompt.copied_from is not None:
                self.cache.move_prompts([prompt.copied_from.slot], [prompt.slot])

    def _enter(self, draft: Draft, prompt: Prompt, chair: int) -> None:
        rows, row, request = self.rows, self.n, self.requests[draft.request]
        drawn = len(draft.tokens)
        rows.request[row], rows.sample[row] = draft.request, draft.sample
        rows.key[row] = stream_key(request.seed, request.first_sample + draft.sample)
        rows.count[row], rows.limit[row] = drawn, self.limits[draft.request]
        rows.chair[row] = chair
        rows.prefix[row], rows.own[row] = len(draft.context) - 1, 0
        rows.last[row] = draft.context[-1]
        stop_ids = request.sampling.stop_ids
        rows.stop[row] = -1
        rows.stop[row, : len(stop_ids)] = stop_ids
        rows.tokens[row, :drawn] = draft.tokens
        rows.logprobs[row, :drawn] = draft.logprobs
        rows.raw_logprobs[row, :drawn] = draft.raw_logprobs
        rows.prompt.append(prompt)
        self.n += 1

    def _prefill(self, new: list[Prompt]) -> None:
        """Computes keys and values of all but the last token of each context.

        The last token is what each row feeds in its first step.
        """
        order = sorted((p for p in new if len(p.context) > 1), key=lambda p: -len(p.context))
        while order:
            longest = len(order[0].context)
            room = max(1, _PREFILL_TOKENS // (longest - 1))
            group = [
                p for p in order[:room]
                if (len(p.context) > self.original) == (longest > self.original)
            ]  # fmt: skip
            order = order[len(group) :]
            self._prefill_group(group, longest)

    def _prefill_group(self, group: list[Prompt], longest: int) -> None:
        ids = np.zeros((len(group), longest - 1), dtype=np.int64)
        for row, prompt in enumerate(group):
            ids[row, : len(prompt.context) - 1] = prompt.context[:-1]
        slots = torch.tensor([p.slot for p in group], device=self.device)
        causal = self.model.attend

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.cache.store_prompt(layer, slots, k, v)
            return causal(layer, q, k, v)

        self.model.hidden(torch.from_numpy(ids).to(self.device), attend=attend, rope_length=longest)
        self.tokens_prefilled += sum(len(p.context) - 1 for p in group)
