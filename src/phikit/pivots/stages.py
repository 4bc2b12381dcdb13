"""The stage `pivots.search`: problems and a model in, pivots and preference pairs out."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from phikit.files import LineFile, write_atomic
from phikit.pivots.config import SearchConfig
from phikit.records import Pair, Sample, write_records
from phikit.stage import Context, Estimate, Stage
from phikit.verify.base import Problem, read_problems

if TYPE_CHECKING:
    from phikit.chat.format import ChatFormat
    from phikit.models.decoder import Decoder
    from phikit.pivots.results import SearchResult, Totals, Trace
    from phikit.pivots.search import Question

# the verifiers whose verdict depends on the final answer alone
BY_FINAL_ANSWER = ("math", "choice", "exact")


class PivotsConfig(SearchConfig):
    """`SearchConfig`, and:

    Attributes:
        problems: how many problems to try, spread evenly over the file; 0 tries all.
        batch: sequences generated at once.
    """

    problems: int = Field(0, ge=0)
    batch: int = Field(256, ge=1)


def run_search(ctx: Context, config: PivotsConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Searches the problems with the model; goes on from the rounds a killed run has left.

    Writes pairs.parquet (`Pair`), pivots.jsonl (`results.Pivot`, with texts), searches.jsonl
    (`results.Trace`, with texts) and rounds/ (every rollout).
    """
    from phikit.chat.format import chat_format
    from phikit.chat.tokenizer import Tokenizer
    from phikit.engine.local import LocalEngine
    from phikit.models.checkpoint import load
    from phikit.pivots.pairs import pivot_pairs
    from phikit.pivots.rounds import RoundLog
    from phikit.pivots.search import search
    from phikit.verify.base import ByName

    directory = inputs["model"] / "model"
    model = load(directory)
    tokenizer = Tokenizer.load(directory)
    chat = chat_format(tokenizer)
    problems = _problems(inputs["problems"], config.problems)
    questions = list(_questions(problems, chat, model.config.max_positions))
    (ctx.dir / "rounds").mkdir(parents=True, exist_ok=True)
    ctx.metrics.rewrite([])

    def on_round(totals: Totals) -> None:
        ctx.metrics.append(dataclasses.asdict(totals))
        if config.total_tokens:
            done = (totals.tokens, config.total_tokens)
        else:
            done = (totals.finished, len(questions))
        ctx.progress.update(*done, questions=totals.questions, samples=totals.samples)

    with LineFile(ctx.dir / "searches.jsonl") as traces:
        result = search(
            LocalEngine(model, max_batch=config.batch),
            ByName(),
            questions,
            chat.text,
            config,
            stop_ids=chat.stop_ids,
            seed=ctx.seed,
            log=RoundLog(ctx.dir / "rounds"),
            answer_key=_answer_key,
            on_search=lambda trace: traces.add(_trace_row(trace, tokenizer.decode)),
            on_round=on_round,
        )
    pairs = pivot_pairs(result.pivots)
    write_records(ctx.dir / "pairs.parquet", pairs, Pair)
    rows = [_pivot_row(dataclasses.asdict(p), tokenizer.decode) for p in result.pivots]
    write_atomic(ctx.dir / "pivots.jsonl", "".join(_line(row) for row in rows))
    _count(ctx, model, result.totals)
    return _summary(result, pairs)


def _problems(folder: Path, most: int) -> list[Sample]:
    samples = read_problems(folder)
    if not most or most >= len(samples):
        return samples
    return [samples[i * len(samples) // most] for i in range(most)]


def _questions(samples: Sequence[Sample], chat: ChatFormat, context: int) -> Iterator[Question]:
    """Each distinct problem once, if the model can read it and has room to answer."""
    from phikit.pivots.search import Question

    seen: set[tuple[int, ...]] = set()
    for sample in samples:
        messages = sample.prompt or ({"role": "user", "content": sample.text},)
        ids = tuple(chat.render(messages, generation_prompt=True).ids)
        if ids not in seen and len(ids) < context:
            seen.add(ids)
            yield Question(Problem.of(sample), ids)


def _answer_key(problem: Problem, text: str) -> str:
    """What of an answer decides its verdict: for most verifiers its final answer."""
    from phikit.verify.answer import final_answer

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


def _count(ctx: Context, model: Decoder, totals: Totals) -> None:
    """Adds the search's cost; prompts count once per request, as the engine reads them."""
    mean = (totals.prefilled / max(totals.requests, 1)) + totals.tokens / max(totals.samples, 1)
    ctx.cost.tokens_generated += totals.tokens
    each = model.config.flops_per_token(round(mean / 2))
    ctx.cost.flops += each * (totals.tokens + totals.prefilled)


def _summary(result: SearchResult, pairs: Sequence[Pair]) -> dict[str, Any]:
    totals = result.totals
    pivots = Counter(p.kind for p in result.pivots)
    paired = Counter(p.evidence["domain"] for p in pairs)
    return {
        "questions": totals.questions,
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


def _estimate(config: PivotsConfig) -> Estimate:
    """A problem takes some 5,000 tokens, most being left after the first look."""
    pairs = 0.2 * config.problems * 100
    if config.total_tokens:
        size = f"up to {config.total_tokens / 1e6:.1f} M tokens"
        return Estimate(size, tokens=pairs, generated=config.total_tokens)
    size = f"{config.problems or 'all'} problems"
    return Estimate(size, tokens=pairs, generated=5_000.0 * config.problems)


STAGES: list[Stage[Any]] = [
    Stage(
        verb="pivots.search",
        config=PivotsConfig,
        run=run_search,
        inputs=("model", "problems"),
        resumable=True,
        estimate=_estimate,
        help="Pivotal Token Search: the tokens that decide, and preference pairs from them",
    )
]
