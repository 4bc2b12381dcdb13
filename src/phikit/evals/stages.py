"""The evaluation stages: accuracy on held-out problems, and recall over long contexts.

The heavy imports are inside the functions, so that a recipe is read and checked without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from phikit.engine.base import Precision
from phikit.errors import PhikitError
from phikit.evals.stage_ifeval import IFEVAL_STAGE
from phikit.evals.statistics import accuracy, item_means
from phikit.evals.tasks import Answer, Asking, Prompting, ask, check_items, judge
from phikit.files import write_json
from phikit.records import Sample, Score, read_records, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.verify.own import VerifierName, files, short

if TYPE_CHECKING:
    from phikit.engine.runners import Model
    from phikit.models.decoder import Decoder

Form = Literal["chat", "text"]


class EvalConfig(Config):
    """How a model is asked the items.

    Attributes:
        form: "chat" for a model with a chat format, "text" for one that is only pretrained.
        samples: sampled answers per item.
        temperature: of the sampled answers (the report's is 0.5).
        greedy: also ask once at temperature 0.
        max_tokens: the longest answer.
        batch: sequences generated at once.
        precision: of the weights; bf16 is faster where they are stored in f32.
        items: ask only so many items, spread evenly over the file; 0 asks all.
        verifiers: other verifiers than the items' own: {math: number} also takes a number that is
            not stated as "Answer: ...", so that a model is not judged on a form it never learnt;
            {math: FILE.py:NAME} takes one of your own.
    """

    form: Form = "chat"
    samples: int = Field(4, ge=0)
    temperature: float = Field(0.5, gt=0)
    greedy: bool = True
    max_tokens: int = Field(256, ge=1)
    batch: int = Field(256, ge=1)
    precision: Precision = "stored"
    items: int = Field(0, ge=0)
    verifiers: dict[VerifierName, VerifierName] = Field(default_factory=dict)


class RecallConfig(Config):
    """How a model is asked to recall; one greedy answer per item.

    Attributes:
        form: "text" for a model that is only pretrained, "chat" for one with a chat format.
        max_tokens: the longest answer.
        batch: sequences generated at once.
        beyond: also ask past the length that the model was trained for, as rotary positions allow;
            else such items count as wrong.
    """

    form: Form = "text"
    max_tokens: int = Field(32, ge=1)
    batch: int = Field(32, ge=1)
    beyond: bool = True


def prompting(model: Model, directory: Path, form: Form) -> Prompting:
    """How to ask the model of a directory: in its chat format, or in pretraining text."""
    from phikit.chat.format import chat_format
    from phikit.chat.tokenizer import Tokenizer
    from phikit.synth.teacher import pretraining_prompt

    tokenizer = Tokenizer.load(directory)
    chat = chat_format(tokenizer)
    context = model.config.max_positions
    if form == "chat":
        return Prompting(
            prompt=lambda item: chat.render(_question(item), generation_prompt=True).ids,
            answer=chat.text,
            stop_ids=chat.stop_ids,
            context=context,
            tokenizer=tokenizer,
        )
    return Prompting(
        prompt=lambda item: tokenizer.encode(pretraining_prompt(item)),
        answer=lambda ids: chat.text(ids).strip(),
        stop_ids=chat.stop_ids,
        context=context,
        tokenizer=tokenizer,
    )


def _question(item: Sample) -> Sequence[Mapping[str, str]]:
    return item.prompt or ({"role": "user", "content": item.text},)


def run_eval(ctx: Context, config: EvalConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Asks a model the items; writes scores.parquet and returns accuracies with intervals."""
    if not config.samples and not config.greedy:
        raise PhikitError("samples is 0 and greedy is off: nothing would be asked")
    path = inputs["items"] / "items.parquet"
    items = _thin(read_records(path, Sample), config.items)
    check_items(items, str(path))
    asking = Asking(config.samples, config.temperature, config.greedy, config.max_tokens)
    model, ask_as = _load(inputs["model"] / "model", config.form, precision=config.precision)
    answers = _generate(ctx, model, ask_as, items, asking, config.batch)
    answers = [_judged_by(answer, config.verifiers) for answer in answers]
    scores = _score(ctx, answers)
    return summarise(scores, answers)


def _judged_by(answer: Answer, verifiers: Mapping[str, str]) -> Answer:
    """The answer to the same item, whose verifier may be another; the item's id stays."""
    named = {short(own): short(other) for own, other in verifiers.items()}
    other, item = named.get(answer.item.verifier), answer.item
    if not other:
        return answer
    # where the gold answer is more than a text, the text alone is in the meta (synth.gym)
    gold = item.meta.get("answer", item.answer)
    return replace(answer, item=replace(item, verifier=other, answer=str(gold)))


def run_recall(ctx: Context, config: RecallConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Asks a model to recall one fact out of texts of several lengths.

    Writes recall.json, {"context": ..., "by_length": [{"length", "accuracy", "low", "high",
    "items"}]} in order of length, and scores.parquet.
    """
    path = inputs["items"] / "recall.parquet"
    items = read_records(path, Sample)
    check_items(items, str(path))
    without = [item.id for item in items if not isinstance(item.meta.get("length"), int | float)]
    if without:
        raise PhikitError(f"{path}: item {without[0]} does not state its length in its meta")
    lengths = {item.id: int(item.meta["length"]) for item in items}
    asking = Asking(samples=0, max_tokens=config.max_tokens)
    model, ask_as = _load(inputs["model"] / "model", config.form)
    trained = model.config.max_positions
    if config.beyond and model.config.long_rope is None:
        longest = max(len(ask_as.prompt(item)) for item in items) + config.max_tokens
        model, ask_as = _load(inputs["model"] / "model", config.form, at_least=longest)
    answers = _generate(ctx, model, ask_as, items, asking, config.batch)
    scores = _score(ctx, answers)
    marks = item_means(scores, greedy=True)
    rows = []
    for length in sorted(set(lengths.values())):
        e = accuracy([marks[i] for i in marks if lengths[i] == length])
        rows.append(
            {"length": length, "accuracy": e.value, "low": e.low, "high": e.high, "items": e.items}
        )
    summary = {"context": trained, "by_length": rows}
    write_json(ctx.dir / "recall.json", summary)
    return summary | {"accuracy": accuracy(list(marks.values())).value}


def summarise(scores: Sequence[Score], answers: Sequence[Answer]) -> dict[str, Any]:
    """The numbers that the command line prints and the report shows."""
    sampled, greedy = item_means(scores), item_means(scores, greedy=True)
    main = sampled or greedy
    samples = max(1, len([s for s in scores if s.sample >= 0]) // max(1, len(sampled)))
    kinds = {s.item: s.task for s in scores}
    of_all = accuracy(list(main.values()), samples)
    by_kind = {}
    for kind in sorted(set(kinds.values())):
        e = accuracy([m for item, m in main.items() if kinds[item] == kind], samples)
        by_kind[kind] = {"accuracy": e.value, "low": e.low, "high": e.high, "items": e.items}
    costs = [s.cost for s in scores if (s.sample >= 0) == bool(sampled)]
    finishes = [a.rollout.finish if a.rollout else "length" for a in answers]
    summary: dict[str, Any] = {
        "accuracy": of_all.value,
        "low": of_all.low,
        "high": of_all.high,
        "by_kind": by_kind,
        "mean_tokens": sum(costs) / len(costs),
        "items": of_all.items,
        "samples": samples,
        "unfinished": finishes.count("length") / len(finishes),
        "too_long": len({a.item.id for a in answers if a.rollout is None}),
    }
    if greedy:
        e = accuracy(list(greedy.values()))
        summary |= {"greedy": e.value, "greedy_low": e.low, "greedy_high": e.high}
    return summary


def _load(
    directory: Path, form: Form, at_least: int = 0, precision: Precision = "stored"
) -> tuple[Decoder, Prompting]:
    """The model of a directory, made to read at least so many positions, and how to ask it."""
    from phikit.engine.load import dtype_of
    from phikit.models.checkpoint import load

    model = load(directory, dtype_of(precision))
    if at_least > model.config.max_positions:
        model.config = model.config.with_context(at_least, model.config.rope_theta)
    return model, prompting(model, directory, form)


def _generate(
    ctx: Context,
    model: Decoder,
    ask_as: Prompting,
    items: Sequence[Sample],
    asking: Asking,
    batch: int,
) -> list[Answer]:
    """Answers from the local engine, with what they cost."""
    from phikit.engine.local import LocalEngine

    engine = LocalEngine(model, max_batch=batch, tokenizer=ask_as.tokenizer)
    answers = ask(engine, ask_as, items, asking, ctx.progress.update)
    seen: set[tuple[str, bool]] = set()
    for a in answers:
        if a.rollout is None:
            continue
        prompt, new = len(a.rollout.prompt_ids), len(a.rollout.completion_ids)
        read = 0 if (key := (a.item.id, a.sample < 0)) in seen else prompt
        seen.add(key)
        ctx.cost.tokens_generated += new
        ctx.cost.flops += read * model.config.flops_per_token(prompt // 2)
        ctx.cost.flops += new * model.config.flops_per_token(prompt + new // 2)
    return answers


def _score(ctx: Context, answers: Sequence[Answer]) -> list[Score]:
    from phikit.verify.base import ByName

    scores = judge(answers, ByName())
    write_records(ctx.dir / "scores.parquet", scores, Score)
    return scores


def _thin(items: list[Sample], most: int) -> list[Sample]:
    """At most so many of the items, evenly spread, so that every kind stays represented."""
    if not most or most >= len(items):
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _estimate(config: EvalConfig) -> Estimate:
    each = config.samples + config.greedy
    items = f"{config.items} items" if config.items else "all items"
    return Estimate(
        f"{items} × {each} answers ≤ {config.max_tokens} tokens",
        seconds=2.0,
        generated=(config.items or 400) * each * config.max_tokens / 4,
    )


STAGES: list[Stage[Any]] = [
    Stage(
        verb="evals.run",
        config=EvalConfig,
        run=run_eval,
        inputs=("model", "items"),
        estimate=_estimate,
        reads=lambda c: files([*c.verifiers, *c.verifiers.values()]),
        help="accuracy on held-out problems, sampled and greedy, with 95 % intervals",
    ),
    Stage(
        verb="evals.recall",
        config=RecallConfig,
        run=run_recall,
        inputs=("model", "items"),
        estimate=lambda config: Estimate("one answer per recall item", 3.0),
        help="recall of one fact from contexts of several lengths",
    ),
    IFEVAL_STAGE,
]
