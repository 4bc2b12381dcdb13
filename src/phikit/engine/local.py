"""The local engine: tokens out of a model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from phikit.chat.tokenizer import Tokenizer
from phikit.engine.adapted import Adapters
from phikit.engine.base import Finished, Request, can_run, check
from phikit.engine.guessers import check_guesser, speculation_of
from phikit.engine.native.build import Compiler, library
from phikit.engine.runners import Model, check_as_trained, rows_to_pack, runner_of
from phikit.engine.scheduler import Scheduler
from phikit.engine.shards import divide, run_together, shard_count
from phikit.engine.texts import Texts
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder

_PREFILL_TOKENS = 8192  # computed in one step: nobody waits for the first token here


class LocalEngine:
    """Batched generation on the very module given; a `Generator`.

    Results are a pure function of the weights, the list of requests, `max_batch` and the number
    of threads; with `invariant`, of the weights and the request alone, bit by bit. With a small
    model every thread runs a batch of its own (see `shards`), and
    `max_batch` is divided between them. What a request draws does not depend on its neighbours,
    except for the rounding of matrix products of other shapes.

    Args:
        model: may go on being trained between calls of `generate`.
        max_batch: how many samples are in the making at once.
        invariant: see `invariant`; costs speed.
        speculate: "lookup" guesses tokens from the row's own text, a small model of the same
            vocabulary guesses them itself; several are then checked in a step (`speculate`). It
            pays with few rows. With `invariant` the tokens are those of an engine without it.
        cache: "int8" holds keys and values in 8 bits (see `pool8`).
        dtype: the precision to compute in; the model's own when left out. With another one the
            weights are copied anew at the start of every `generate`.
        as_trained: compute in bfloat16 as training's forward pass does, bit by bit, so that a
            sample's log-probabilities are those which training gives it (see `native.trained`);
            weights are copied anew at the start of every `generate`. Here, too, nothing depends on
            what else is in the batch.
        tokenizer: the model's own, for requests with stop texts or constraints.

    Attributes:
        tokens_generated: tokens drawn so far, over all calls.
        guessed, accepted: tokens of speculation, over all calls of `generate`.
        tokens_prefilled: prompt tokens computed so far (a shared prompt counts once).
    """

    def __init__(
        self,
        model: Model,
        max_batch: int = 256,
        dtype: torch.dtype | None = None,
        invariant: bool = False,
        tokenizer: Tokenizer | None = None,
        speculate: str | Decoder = "",
        cache: str = "",
        as_trained: bool = False,
    ) -> None:
        """Raises:
        PhikitError: a setting does not go with the model, the processor or another one.
        """
        if max_batch < 1:
            raise PhikitError(f"max_batch is {max_batch}; it must be at least 1")
        if as_trained:
            check_as_trained(model, invariant, cache, dtype)
        self.model = model
        self.max_batch = max_batch
        self.tokenizer = tokenizer
        self._texts: Texts | None = None
        self.cache = cache
        self.invariant, self.speculate, self.as_trained = invariant, speculate, as_trained
        self.guessed = self.accepted = 0
        check_guesser(speculate, model)
        self.tokens_generated = 0
        self.tokens_prefilled = 0
        own = model.model.embed_tokens.weight.dtype  # a head may be packed
        self._copy: Model | None = None
        if dtype is not None and dtype != own and not as_trained:
            with torch.device("meta"):
                self._copy = type(model)(model.config).to(dtype)  # type: ignore[arg-type]
            self._copy.to_empty(device=model.model.embed_tokens.weight.device)
            if model.config.tied:
                self._copy.lm_head.weight = self._copy.model.embed_tokens.weight

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        """Yields every sample of every request exactly once, in order of finishing.

        A completion is cut at the model's context length; it then finishes with "length".

        Raises:
            PhikitError: a prompt is empty, leaves no room in the context, or holds ids that are
                not in the vocabulary.
        """
        requests = list(requests)
        for index, request in enumerate(requests):
            try:
                self.check(request)
            except PhikitError as error:
                raise PhikitError(f"request {index}: {error.message}", error.hint) from None
        return self._run(requests)

    def check(self, request: Request) -> None:
        """Whether the engine can take a request.

        Raises:
            PhikitError: it cannot.
        """
        config = self.model.config
        check(request, config.vocab_size, config.max_positions, Adapters(self.model).names)
        can_run(request, self.tokenizer is not None)
        if self.tokenizer is not None and (request.sampling.stop or request.sampling.constraint):
            if self._texts is None:
                self._texts = Texts(self.tokenizer, config.vocab_size)
            self._texts.check(request.sampling)

    def _run(self, requests: list[Request]) -> Iterator[Finished]:
        rows = min(self.max_batch, sum(r.n for r in requests))
        if not rows:
            return
        weights = self._weights()
        count = shard_count(self.model.config.parameters, rows, torch.get_num_threads())
        if self.invariant and library(Compiler()) is None:
            count = 1  # torch's results depend on the number of threads
        shards = divide(requests, count)
        most = -(-self.max_batch // len(shards))
        pack = self._packing(weights, requests, rows, len(shards))
        schedulers = [self._scheduler(weights, min(most, rows), len(shards), pack) for _ in shards]
        try:
            yield from run_together(schedulers, shards)
        finally:  # also when the caller stops early
            self.tokens_generated += sum(s.generated for s in schedulers)
            self.tokens_prefilled += sum(s.runner.prefilled for s in schedulers)
            told = [s.speculation for s in schedulers if s.speculation is not None]
            self.guessed += sum(s.guessed for s in told)
            self.accepted += sum(s.accepted for s in told)

    def _packing(self, weights: Model, requests: list[Request], rows: int, shards: int) -> int:
        """For how many rows to pack the weights. Each of the shards gets a copy of its own."""
        tokens = sum(r.n * r.sampling.max_tokens for r in requests)
        each = -(-rows // shards)
        if self.as_trained:
            return 0
        return rows_to_pack(weights, each, tokens // rows, self.invariant, self.cache)

    def _scheduler(self, weights: Model, rows: int, shards: int, pack: int = 0) -> Scheduler:
        return Scheduler(
            runner_of(weights, pack, self.invariant, self.cache, self.as_trained),
            max_rows=rows,
            cache_share=1 / shards,
            prefill_tokens=_PREFILL_TOKENS,
            refill=max(1, rows // 8),
            keep=False,
            most_cached=4 * rows,
            texts=self._texts,
            speculation=speculation_of(self.speculate, rows, self.invariant),
        )

    def stream(self, request: Request) -> Iterator[int]:
        """Yields the tokens of one sample as they are drawn: the same as `generate` gives.

        Raises:
            PhikitError: as `generate`; or more than one sample is asked for.
        """
        self.check(request)
        if request.n != 1:
            raise PhikitError(f"only one sample can be streamed; n is {request.n}")
        return self._stream(request)

    def _stream(self, request: Request) -> Iterator[int]:
        weights = self._weights()
        pack = self._packing(weights, [request], 1, 1)
        scheduler = self._scheduler(weights, 1, 1, pack)
        scheduler.submit(request)
        while scheduler.busy:
            for event in scheduler.step().tokens():
                self.tokens_generated += 1
                yield event.token
        self.tokens_prefilled += scheduler.runner.prefilled

    @torch.no_grad()
    def _weights(self) -> Model:
        if self._copy is None:
            return self.model
        for target, source in zip(self._copy.parameters(), self.model.parameters(), strict=True):
            target.copy_(source)
        return self._copy
