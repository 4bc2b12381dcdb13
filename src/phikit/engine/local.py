"""The local engine: tokens out of a model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from phikit.engine.base import Finished, Request
from phikit.engine.batch import Batch
from phikit.engine.shards import divide, run_together, shard_count
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder


class LocalEngine:
    """Batched generation on the very module given; a `Generator`.

    Results are a pure function of the weights, the list of requests, `max_batch` and the number
    of threads. With a small model every thread runs a batch of its own (see `shards`), and
    `max_batch` is divided between them. What a request draws does not depend on its neighbours,
    except for the rounding of matrix products of other shapes.

    Args:
        model: may go on being trained between calls of `generate`.
        max_batch: how many samples are in the making at once.
        dtype: the precision to compute in; the model's own when left out. With another one the
            weights are copied anew at the start of every `generate`.

    Attributes:
        tokens_generated: tokens drawn so far, over all calls.
        tokens_prefilled: prompt tokens computed so far (a shared prompt counts once).
    """

    def __init__(
        self, model: Decoder, max_batch: int = 256, dtype: torch.dtype | None = None
    ) -> None:
        if max_batch < 1:
            raise PhikitError(f"max_batch is {max_batch}; it must be at least 1")
        self.model = model
        self.max_batch = max_batch
        self.tokens_generated = 0
        self.tokens_prefilled = 0
        own = model.lm_head.weight.dtype
        self._copy: Decoder | None = None
        if dtype is not None and dtype != own:
            with torch.device("meta"):
                self._copy = Decoder(model.config).to(dtype)
            self._copy.to_empty(device=model.lm_head.weight.device)
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
            self._check(index, request)
        return self._run(requests)

    def _run(self, requests: list[Request]) -> Iterator[Finished]:
        weights = self._weights()
        rows = min(self.max_batch, sum(r.n for r in requests))
        count = shard_count(self.model.config.parameters, rows, torch.get_num_threads())
        shards = divide(requests, count)
        batches = [
            Batch(weights, [part.request for part in shard], -(-self.max_batch // len(shards)))
            for shard in shards
        ]
        try:
            if len(batches) == 1:
                yield from self._run_alone(batches[0])
            else:
                yield from run_together(batches, shards)
        finally:  # also when the caller stops early
            self.tokens_generated += sum(b.tokens_generated for b in batches)
            self.tokens_prefilled += sum(b.tokens_prefilled for b in batches)

    @staticmethod
    def _run_alone(batch: Batch) -> Iterator[Finished]:
        while batch.busy:
            with torch.inference_mode():  # not around the yield: the caller may be training
                finished = batch.step()
            yield from finished

    def stream(self, request: Request) -> Iterator[int]:
        """Yields the tokens of one sample as they are drawn: the same as `generate` gives.

        Raises:
            PhikitError: as `generate`; or more than one sample is asked for.
        """
        self._check(0, request)
        if request.n != 1:
            raise PhikitError(f"only one sample can be streamed; n is {request.n}")
        return self._stream(request)

    def _stream(self, request: Request) -> Iterator[int]:
        batch = Batch(self._weights(), [request], 1)
        while batch.busy:
            with torch.inference_mode():
                batch.step()
            self.tokens_generated += 1
            yield batch.newest
        self.tokens_prefilled += batch.tokens_prefilled

    @torch.no_grad()
    def _weights(self) -> Decoder:
        if self._copy is None:
            return self.model
        for target, source in zip(self._copy.parameters(), self.model.parameters(), strict=True):
            target.copy_(source)
        return self._copy

    def _check(self, index: int, request: Request) -> None:
        config, ids = self.model.config, request.prompt_ids
        if not ids:
            raise PhikitError(f"request {index}: the prompt is empty", "give at least one token")
        if request.n < 1 or request.first_sample < 0:
            raise PhikitError(
                f"request {index}: n is {request.n} and first_sample {request.first_sample}; "
                "they must be at least 1 and 0"
            )
        if len(ids) >= config.max_positions:
            raise PhikitError(
                f"request {index}: the prompt has {len(ids)} tokens; the model's context is "
                f"{config.max_positions}, so none can follow",
                "shorten the prompt",
            )
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            wrong = next(i for i in ids if not 0 <= i < config.vocab_size)
            raise PhikitError(
                f"request {index}: token id {wrong} is not in the vocabulary of "
                f"{config.vocab_size}",
                "encode the prompt with this model's own tokenizer",
            )
