"""Searching a list of problems with a model: what the stage and the command both do.

Into one folder go pairs.parquet (`Pair`), pivots.jsonl (`results.Pivot`, with texts),
searches.jsonl (`results.Trace`, with texts), rounds/ (every rollout: what a killed search goes on
from) and metrics.jsonl (running totals).
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.load import load_tokenizer
from phikit.engine.base import Finished, Generator, Request
from phikit.engine.load import open_chat
from phikit.files import LineFile, write_atomic
from phikit.models.architectures import read_config
from phikit.models.decoder_config import DecoderConfig
from phikit.models.flash.config import FlashConfig
from phikit.pivots.config import PivotsConfig
from phikit.pivots.pairs import pivot_pairs
from phikit.pivots.results import SearchResult, Totals, Trace
from phikit.pivots.rounds import RoundLog
from phikit.pivots.search import Question, search
from phikit.records import Pair, Sample, write_records
from phikit.stage import Context
from phikit.verify.answer import final_answer
from phikit.verify.base import ByName, Problem

# the verifiers whose verdict depends on the final answer alone
BY_FINAL_ANSWER = ("math", "choice", "exact")


def search_problems(
    ctx: Context,
    config: PivotsConfig,
    directory: Path,
    samples: Sequence[Sample],
    generator: Generator | None = None,
) -> dict[str, Any]:
    """Searches the problems with the model of a directory; goes on from the rounds that are there.

    Args:
        generator: where the model's rollouts come from, if it is not to be run here; it must take
            and return token ids. The directory then gives the tokenizer and the shape alone.

    Returns:
        The summary: questions, pivots, pairs by kind, tokens.
    """
    if generator is None:
        engine, chat = open_chat(directory, config.batch, config.precision)
        shape, generator = engine.model.config, engine
    else:
        shape, chat = read_config(directory), chat_format(load_tokenizer(directory))
    problems = _spread(samples, config.problems)
    questions, left_out = _questions(problems, chat, shape.max_positions)
    (ctx.dir / "rounds").mkdir(parents=True, exist_ok=True)
    ctx.metrics.rewrite([])

    seen = Totals()

    def show(more: int = 0) -> None:
        if config.total_tokens:
            done = (seen.tokens, config.total_tokens)
        else:
            done = (seen.finished, len(questions))
        ctx.progress.update(*done, questions=seen.questions, samples=seen.samples + more)

    def on_round(totals: Totals) -> None:
        nonlocal seen
        seen = dataclasses.replace(totals)
        ctx.metrics.append(dataclasses.asdict(totals))
        show()

    show()
    with LineFile(ctx.dir / "searches.jsonl") as traces:
        result = search(
            _Shown(generator, show),
            ByName(),
            questions,
            chat.text,
            config,
            stop_ids=chat.stop_ids,
            seed=ctx.seed,
            log=RoundLog(ctx.dir / "rounds"),
            answer_key=_answer_key,
            on_search=lambda trace: traces.add(_trace_row(trace, chat.tokenizer.decode)),
            on_round=on_round,
        )
    pairs = pivot_pairs(result.pivots)
    write_records(ctx.dir / "pairs.parquet", pairs, Pair)
    rows = [_pivot_row(dataclasses.asdict(p), chat.tokenizer.decode) for p in result.pivots]
    write_atomic(ctx.dir / "pivots.jsonl", "".join(_line(row) for row in rows))
    _count(ctx, shape, result.totals)
    return _summary(result, pairs, left_out)


class _Shown:
    """A generator whose finished samples are shown before their round is complete."""

    def __init__(self, generator: Generator, show: Callable[[int], None], every: int = 64) -> None:
        self.generator, self.show, self.every = generator, show, every

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        for count, finished in enumerate(self.generator.generate(requests), 1):
            if count % self.every == 0:
                self.show(count)
            yield finished


def _spread(samples: Sequence[Sample], most: int) -> Sequence[Sample]:
    if not most or most >= len(samples):
        return samples
    return [samples[i * len(samples) // most] for i in range(most)]


def _questions(
    samples: Sequence[Sample], chat: ChatFormat, context: int
) -> tuple[list[Question], dict[str, int]]:
    """Each distinct problem once, if the model can read it and has room to answer; and how many
    were left out because they repeat another, or are too long."""
    questions: dict[tuple[object, ...], Question] = {}
    repeated = too_long = 0
    for sample in samples:
        messages = sample.prompt or ({"role": "user", "content": sample.text},)
        ids = tuple(chat.render(messages, generation_prompt=True).ids)
        # another answer makes it another problem
        key = (ids, sample.verifier, sample.answer)
        repeated += key in questions
        too_long += len(ids) >= context
        if len(ids) < context:
            questions.setdefault(key, Question(Problem.of(sample), ids))
    return list(questions.values()), {"repeated": repeated, "too_long": too_long}


def _answer_key(problem: Problem, text: str) -> str:
    """What of an answer decides its verdict: for most verifiers its final answer."""
    if problem.verifier in BY_FINAL_ANSWER:
        return final_answer(text) or ""
    return text


def _trace_row(trace: Trace, decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    row = dataclasses.asdict(trace)
    row["prompt"] = decode(trace.prompt_ids)
    for solution in row["solutions"]:
        solution["tokens"] = [decode([i]) for i in solution["ids"]]
    return row


def _pivot_row(row: dict[str, Any], decode: Callable[[Sequence[int]], str]) -> dict[str, Any]:
    row["token_text"] = decode([row["token"]])
    for alternative in row["alternatives"]:
        alternative["token_text"] = decode([alternative["token"]])
    return row


def _count(ctx: Context, shape: DecoderConfig | FlashConfig, totals: Totals) -> None:
    """Adds the search's cost; prompts count once per request, as the engine reads them."""
    mean = (totals.prefilled / max(totals.requests, 1)) + totals.tokens / max(totals.samples, 1)
    ctx.cost.tokens_generated += totals.tokens
    each = shape.flops_per_token(round(mean / 2))
    ctx.cost.flops += each * (totals.tokens + totals.prefilled)


def _summary(
    result: SearchResult, pairs: Sequence[Pair], left_out: Mapping[str, int]
) -> dict[str, Any]:
    totals = result.totals
    pivots = Counter(p.kind for p in result.pivots)
    paired = Counter(p.evidence["domain"] for p in pairs)
    return {
        "questions": totals.questions,
        **left_out,
        "kept": totals.kept,
        "tested": result.tested,
        "pivots": len(result.pivots),
        "helping": sum(p.delta > 0 for p in result.pivots),
        "pairs": len(pairs),
        "by_kind": {k: {"pivots": pivots[k], "pairs": paired[k]} for k in sorted(pivots)},
        "tokens": totals.tokens,
        "samples": totals.samples,
        "rounds": totals.rounds,
        "verdicts_computed": totals.verified,
        "verdicts_known": totals.samples - totals.verified,
        "tokens_per_pair": round(totals.tokens / len(pairs)) if pairs else None,
    }


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
