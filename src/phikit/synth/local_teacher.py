"""A model in this process as a teacher: the same interface, budget and store as an endpoint's.

Requests that wait are generated together, as many as the batch holds; those that come meanwhile
are the next batch. Each reply is stored as soon as its own last token is drawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from phikit.engine.base import Constraint, Generator, Sampling
from phikit.engine.base import Request as Asked
from phikit.errors import PhikitError
from phikit.files import canonical_json
from phikit.synth.replies import ReplyStore, Request
from phikit.synth.stored_teacher import Answer, Budget, NoAnswer, StoredTeacher

Render = Callable[[Sequence[Mapping[str, str]]], Sequence[int]]
Read = Callable[[Sequence[int]], str]


class LocalTeacher(StoredTeacher):
    """A `StoredTeacher` on a `Generator`; `calls` counts completions.

    Args:
        render: messages → prompt ids, up to where the answer begins.
        read: completion ids → text.
        stop_ids: tokens that end an answer.
        batch: answers generated at once.
        seed: of the random draws, beside each request's own.
        structured: hold answers to the request's schema while they are drawn; the generator must
            know texts.
    """

    def __init__(
        self,
        name: str,
        generator: Generator,
        render: Render,
        read: Read,
        stop_ids: tuple[int, ...],
        store: ReplyStore,
        budget: Budget | None = None,
        batch: int = 64,
        seed: int = 0,
        structured: bool = False,
    ) -> None:
        super().__init__(name, budget or Budget(), store)
        self.generator, self.render, self.read = generator, render, read
        self.stop_ids, self.batch, self.seed = stop_ids, batch, seed
        self.structured = structured
        self._waiting: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None

    @classmethod
    def of(
        cls, model: Path, store: ReplyStore, budget: Budget | None = None, batch: int = 64,
        seed: int = 0, name: str = "", structured: bool = True,
    ) -> LocalTeacher:  # fmt: skip
        """A model directory or GGUF file with its chat format.

        Raises:
            PhikitError: it cannot be loaded.
        """
        from phikit.engine.load import open_chat

        engine, form = open_chat(model, batch)
        return cls(
            name or model.name,
            engine,
            lambda messages: form.render(messages, generation_prompt=True).ids,
            form.text,
            form.stop_ids,
            store,
            budget,
            batch,
            seed,
            structured,
        )

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        self._waiting.clear()
        if self._worker is not None:
            # its thread ends with the batch that it is at; each answer is stored as it comes
            await self._worker
        await super().__aexit__()

    async def _generate(self, request: Request, attempt: int) -> Answer:
        ids = tuple(self.render(self.messages(request)))
        form = None
        if self.structured and request.schema is not None:
            form = Constraint("json_schema", canonical_json(request.schema))
        sampling = Sampling(
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            stop_ids=self.stop_ids,
            constraint=form,
        )
        seed = self.seed + request.draw
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((Asked(ids, sampling, 1, seed, attempt), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        await asyncio.sleep(0)  # let all that are ready come in
        while self._waiting:
            batch, self._waiting = self._waiting[: self.batch], self._waiting[self.batch :]
            self.calls += len(batch)
            loop = asyncio.get_running_loop()
            try:
                await asyncio.to_thread(self._run, batch, loop)
            except PhikitError as e:
                if len(batch) > 1:  # one of them is at fault: find out which
                    for one in batch:
                        await self._alone(one, loop)
                else:
                    _fail(batch[0][1], e)
            except BaseException as e:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(e)
                raise

    async def _alone(
        self, one: tuple[Asked, asyncio.Future[Answer]], loop: asyncio.AbstractEventLoop
    ) -> None:
        if one[1].done():
            return
        try:
            await asyncio.to_thread(self._run, [one], loop)
        except PhikitError as e:
            _fail(one[1], e)

    def _run(
        self,
        batch: Sequence[tuple[Asked, asyncio.Future[Answer]]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        for done in self.generator.generate([asked for asked, _ in batch]):
            rollout = done.rollout
            answer = Answer(
                self.read(rollout.completion_ids),
                len(rollout.prompt_ids),
                len(rollout.completion_ids),
                rollout.finish == "length",
            )
            loop.call_soon_threadsafe(_settle, batch[done.request][1], answer)


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def _fail(future: asyncio.Future[Answer], error: PhikitError) -> None:
    if not future.done():
        future.set_exception(NoAnswer(error.message))
