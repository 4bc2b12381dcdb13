"""Continuous batching: requests may join, and be cancelled, between any two steps.

A step computes some prompt tokens (a budget, so that a long prompt does not stall the others) and
draws one token for every row of the batch. Rows hold blocks of the KV cache; when blocks run out,
cached prefixes are evicted, and then the sample admitted last gives its blocks up and waits: it is
computed anew later, from the tokens it has.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from phikit.engine.adjust import Adjustments, adjusts
from phikit.engine.base import Request, Sampling, can_run, check
from phikit.engine.blocks import Blocks
from phikit.engine.columns import Columns
from phikit.engine.entrance import Entrance
from phikit.engine.kept import MOST_KEPT, KeptPrefixes, StateEntrance
from phikit.engine.pool import available_memory
from phikit.engine.radix import PrefixCache
from phikit.engine.runner import Rows, Runner
from phikit.engine.samples import Done, Events, Sample, Stats, Ticket
from phikit.engine.sampling import Settings, draw, likeliest, stream_key, uniforms
from phikit.engine.speculate import Guess, Speculation
from phikit.engine.texts import Texts
from phikit.errors import PhikitError
from phikit.records import Rollout

_MEMORY = 0.5  # of the memory that is free: what the cache may take when nothing is said


class Scheduler:
    """Runs requests on a runner: `submit`, then `step` while `busy`.

    Args:
        max_rows: samples generated at once.
        cache_bytes: memory of the KV cache, states included; half of the machine's free memory when
            left out, but never more than `max_rows` samples of full length need.
        cache_share: of the memory that the cache may take when nothing is said.
        prefill_tokens: prompt tokens computed in one step.
        refill: rows that must be free before waiting samples enter (1: at once).
        keep: whether what finished samples computed stays in the prefix cache.
        speculation: guesses tokens, to be checked several at a time.
        most_cached: how many nodes the prefix cache may have; no limit but memory when left out.
        texts: of the model's tokens; without them stop texts and constraints are refused.

    Raises:
        PhikitError: the cache does not fit into memory.
    """

    def __init__(
        self,
        runner: Runner,
        max_rows: int = 64,
        cache_bytes: int | None = None,
        cache_share: float = 1.0,
        prefill_tokens: int = 512,
        refill: int = 1,
        keep: bool = True,
        most_cached: int | None = None,
        texts: Texts | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.runner, self.prefill_tokens, self.refill = runner, prefill_tokens, refill
        self.keep, self.most_cached, self.speculation = keep, most_cached, speculation
        self.texts = texts
        if speculation is not None and runner.states is not None:
            raise PhikitError(
                "a model with other state than keys and values cannot take guesses back",
                "leave speculation out",
            )
        self.blocks = Blocks(
            _block_count(runner, max_rows, cache_bytes, cache_share), runner.block_size
        )
        runner.allocate(self.blocks.count)
        self.prefixes: PrefixCache | KeptPrefixes
        self.entrance: Entrance
        if runner.states is None:
            self.prefixes = PrefixCache(self.blocks)
            self.entrance = Entrance(runner, self.blocks, self.prefixes)
        else:
            runner.states.allocate(max_rows + MOST_KEPT)
            self.prefixes = KeptPrefixes(self.blocks, runner.states)
            self.entrance = StateEntrance(runner, runner.states, self.blocks, self.prefixes)
        self.rows = Columns(max_rows, runner.block_size)
        self.waiting: deque[Sample] = deque()
        self.settings: Settings | None = None
        self.adjustments: Adjustments | None = None
        self.generated = self.preempted = self.recomputed = 0
        self._tickets = 0
        self._adapters: tuple[str, ...] = ()  # these three are of the rows that `settings` is of
        self._sampling: list[Sampling] = []
        self._watched = False
        self._same = False  # whether rows and tables are those of the last step

    # --- requests --------------------------------------------------------------------------------

    def submit(self, request: Request) -> Ticket:
        """Takes a request in.

        Raises:
            PhikitError: the prompt is wrong for the model, or one sample of this length would not
                fit into the whole cache.
        """
        runner = self.runner
        check(request, runner.vocab_size, runner.max_positions, runner.adapters)
        can_run(request, self.texts is not None)
        room = self.runner.max_positions - len(request.prompt_ids)
        limit = min(request.sampling.max_tokens, room)
        size = self.blocks.size
        needed = -(-(len(request.prompt_ids) + limit - 1) // size)
        if needed > self.blocks.count - 1:
            each = self.runner.block_bytes
            raise PhikitError(
                f"a prompt of {len(request.prompt_ids)} and up to {limit} new tokens need {needed} "
                f"blocks of the KV cache ({needed * each / 2**20:.0f} MiB); the whole cache has "
                f"{self.blocks.count - 1} ({(self.blocks.count - 1) * each / 2**20:.0f} MiB)",
                "ask for fewer tokens, or give the cache more memory",
            )
        texts, sampling = self.texts, request.sampling
        watches = [texts.watch(sampling) if texts else None for _ in range(request.n)]
        self._tickets += 1
        ticket = Ticket(self._tickets, request, limit, request.n)
        for i, watch in enumerate(watches):
            key = stream_key(request.seed, request.first_sample + i)
            self.waiting.append(Sample(ticket, i, key, watch=watch))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Drops a request: its unfinished samples never finish, their blocks are free at once."""
        if ticket.cancelled or not ticket.left:
            return
        ticket.cancelled = True
        ticket.left = 0
        self.waiting = deque(s for s in self.waiting if s.ticket is not ticket)
        while mine := [s for s in self.entrance.entering if s.ticket is ticket]:
            out = self.entrance.withdraw(mine[0])
            self.waiting.extendleft(reversed([s for s in out if s.ticket is not ticket]))
        gone = np.array([s.ticket is ticket for s in self.rows.samples], dtype=bool)
        if gone.any():
            for row in np.flatnonzero(gone).tolist():
                self.entrance.give_up(self.rows.samples[row])
            self._remove(gone)

    @property
    def busy(self) -> bool:
        """Whether anything is waiting, entering or running."""
        return bool(self.rows.n or self.waiting or self.entrance.entering)

    def stats(self) -> Stats:
        """What the engine holds and has done so far; the server's metrics come from it."""
        idle = self.prefixes.idle
        return Stats(
            blocks=self.blocks.count - 1,
            block_size=self.blocks.size,
            used=self.blocks.used - idle,
            cached=idle,
            waiting=len(self.waiting),
            entering=len(self.entrance.entering),
            running=self.rows.n,
            generated=self.generated,
            prefilled=self.runner.prefilled,
            reused=self.entrance.reused,
            recomputed=self.recomputed,
            preempted=self.preempted,
        )

    def clear_cache(self) -> None:
        """Forgets all cached prefixes that no row uses."""
        self.prefixes.clear()

    # --- a step ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> Events:
        """Lets waiting samples in, computes prompts, and draws a token for every row."""
        self._admit()
        for sample in self.entrance.work(self.prefill_tokens):
            self.rows.enter(sample)
            self.settings, self._same = None, False
        if not self.rows.n or self.speculation is not None:
            self.runner.settle()
        if not self.rows.n:
            return Events()
        self._secure()
        if self.speculation is not None:
            guesses = self.speculation.guess(self.rows, self.runner)
            if guesses is not None:
                return self._advance_several(self.speculation, guesses)
        return self._advance()

    def _advance_several(self, speculation: Speculation, guesses: list[Guess]) -> Events:
        """One step of guessed tokens, as many as there are blocks for."""
        rows, size = self.rows, self.blocks.size
        for row, guess in enumerate(guesses):
            last = int(rows.position[row]) + len(guess.tokens)
            table = rows.samples[row].table
            while len(table) * size <= last and self.entrance.secure(1):
                rows.add_block(row, self.blocks.take())
            guess.cut(len(table) * size - 1 - int(rows.position[row]))
        self._name_adapters()
        found = speculation.check(rows, guesses, self.runner, self._adapters)
        self._same = False
        place = rows.record_several(*found)
        samples = [rows.samples[r] for r in found.row.tolist()]
        self.generated += len(samples)
        return Events(self._leave(), samples, place, *found[1:])

    def _admit(self) -> None:
        inside = self.rows.n + len(self.entrance.entering)
        free = self.rows.size - inside
        if not self.waiting or (inside and free < self.refill):
            return
        if self.most_cached is not None and len(self.prefixes.nodes) > self.most_cached:
            self.prefixes.evict(len(self.prefixes.nodes) - self.most_cached)
        for _ in range(min(free, len(self.waiting))):
            # rows that run will soon want a block each
            reserve = self.rows.n + len(self.entrance.entering)
            if not self.entrance.admit(self.waiting[0], reserve):
                if reserve == 0:
                    raise PhikitError("the KV cache cannot hold a sample that was let in")
                break
            self.waiting.popleft()

    def _secure(self) -> None:
        """Gives every row the block that its next token goes to; takes some from the samples
        admitted last when there are too few."""
        rows = self.rows
        while True:
            lacking = rows.lacking().tolist()
            if not lacking:
                return
            if self.entrance.secure(len(lacking)):
                break
            self._preempt()
        for row in lacking:
            rows.add_block(row, self.blocks.take())
        self._same = False

    def _preempt(self) -> None:
        self.preempted += 1
        self.runner.settle()  # before blocks are given to others
        if self.entrance.entering:
            self.waiting.extendleft(reversed(self.entrance.withdraw(self.entrance.entering[-1])))
            return
        last = int(np.argmax(self.rows.order[: self.rows.n]))
        self.recomputed += int(self.rows.position[last])
        gone = np.zeros(self.rows.n, dtype=bool)
        gone[last] = True
        self._requeue(last)
        self._remove(gone)

    def _advance(self) -> Events:
        rows, n = self.rows, self.rows.n
        self._name_adapters()
        batch = Rows(
            rows.last[:n], rows.position[:n], rows.table[:n], rows.long[:n], rows.state[:n],
            self._same, self._adapters,
        )  # fmt: skip
        logits_NV = self.runner.step(batch).float()
        self._same = True
        if self.settings is None:  # other rows than in the last step
            self._sampling = [s.ticket.request.sampling for s in rows.samples]
            self._watched = self.texts is not None and any(s.watch for s in rows.samples)
            self.settings = Settings.of(self._sampling, self.runner.device)
            self.adjustments = self._adjust(self._sampling)
        uniform_N = torch.from_numpy(uniforms(rows.key[:n], rows.count[:n])).to(logits_NV.device)
        adjusted_NV = self.adjustments.apply(logits_NV) if self.adjustments else None
        texts = self.texts if self._watched else None
        if texts:
            masked_NV = texts.mask(rows.samples, logits_NV if adjusted_NV is None else adjusted_NV)
            adjusted_NV = None if masked_NV is logits_NV else masked_NV
        drawn = draw(logits_NV, self.settings, uniform_N, adjusted_NV, self.settings.tops)
        if self.adjustments:
            self.adjustments.record(drawn.token_N)
        token, logprob, raw = (t.cpu().numpy() for t in drawn[:3])
        events = Events([], list(rows.samples), rows.count[:n].copy(), token, logprob, raw)
        if self.settings.tops:
            events.top = likeliest(logits_NV, drawn, self._sampling)
        rows.record(token, logprob, raw)
        self.generated += n
        ended = texts.follow(rows.samples, token) if texts else None
        events.finished = self._leave(ended)
        return events

    def _name_adapters(self) -> None:
        if self.settings is None:
            named = tuple(s.adapter for s in self.rows.samples)
            self._adapters = named if any(named) else ()

    def _adjust(self, sampling: list[Sampling]) -> Adjustments | None:
        if not any(map(adjusts, sampling)):
            return None
        told = [
            (s, sample.ticket.request.prompt_ids, self.rows.drawn(row)[0])
            for row, (s, sample) in enumerate(zip(sampling, self.rows.samples, strict=True))
        ]
        return Adjustments(told, self.runner.vocab_size, self.runner.device)

    def _leave(self, ended: np.ndarray | None = None) -> list[Done]:
        """Takes out the rows that are finished, and those that must be computed anew."""
        rows, n = self.rows, self.rows.n
        stopped = (rows.last[:n, None] == rows.stop[:n]).any(1)
        if ended is not None:
            stopped |= ended
        done = stopped | (rows.count[:n] >= rows.limit[:n])
        gone = done
        if self.runner.original is not None:
            # past the original length all positions turn by the long factors: start over
            gone = done | ((rows.position[:n] + 1 > self.runner.original) & (rows.long[:n] == 0))
        if not gone.any():
            return []
        finished = []
        for row in np.flatnonzero(gone).tolist():
            if done[row]:
                finished.append(self._finished(row, bool(stopped[row])))
            else:
                self._requeue(row)
        self._remove(gone)
        return finished

    def _finished(self, row: int, stopped: bool) -> Done:
        sample = self.rows.samples[row]
        ticket = sample.ticket
        tokens, logprobs, raw = self.rows.drawn(row)
        if self.keep:
            self.entrance.keep(sample, (*ticket.request.prompt_ids, *tokens[:-1]))
        self.entrance.give_up(sample)
        ticket.left -= 1
        problem = sample.watch.problem if sample.watch else ""
        rollout = Rollout(
            prompt_ids=ticket.request.prompt_ids,
            completion_ids=tuple(tokens),
            logprobs=tuple(logprobs),
            raw_logprobs=tuple(raw),
            finish="stop" if stopped and not problem else "length",
            meta={"constraint": problem} if problem else {},
        )
        return Done(ticket, sample.number, rollout, sample.reused)

    def _requeue(self, row: int) -> None:
        """A row gives its blocks up and waits, before all others, with what it has drawn."""
        sample = self.rows.samples[row]
        sample.tokens, sample.logprobs, sample.raw_logprobs = self.rows.drawn(row)
        self.entrance.give_up(sample)
        self.waiting.appendleft(sample)

    def _remove(self, gone: np.ndarray) -> None:
        self.rows.remove(gone)
        self.settings, self._same = None, False


def _block_count(runner: Runner, max_rows: int, cache_bytes: int | None, share: float) -> int:
    """How many blocks the cache gets, block 0 included."""
    free = available_memory()
    if runner.device.type == "cuda":
        free = torch.cuda.mem_get_info(runner.device)[0]
    if cache_bytes is not None and free and cache_bytes > free:
        raise PhikitError(
            f"a KV cache of {cache_bytes / 2**30:.1f} GiB does not fit: "
            f"{free / 2**30:.1f} GiB of memory are free",
            "give the cache less memory",
        )
    bound = cache_bytes if cache_bytes is not None else int((free or 2**31) * _MEMORY * share)
    full = max_rows * -(-runner.max_positions // runner.block_size)
    states, told, way = 0, "", "give the cache more memory"
    if runner.states is not None:
        states = (max_rows + MOST_KEPT) * runner.states.bytes_per_slot
        told = f" beside {states} bytes for the states of {max_rows} rows and {MOST_KEPT} prefixes"
        way += ", or generate fewer samples at once"
    count = min((bound - states) // runner.block_bytes, full)
    if count < 1:
        raise PhikitError(
            f"a KV cache of {bound} bytes holds no block{told}: one of {runner.block_size} "
            f"positions takes {runner.block_bytes} bytes",
            way,
        )
    return int(count) + 1
