"""Preferences by a judge: the second round of DPO data (Phi-4 report, 4.2; its table of counts).

Every given model answers the same problems several times, a judge grades the answers on accuracy,
style and detail, and pairs are made where the grades differ enough: "any vs any accuracy", and "any
vs any overall" (the mean of the three). A pair holds the token ids exactly as they were sampled.

Two things are stricter than in the report: no answer is chosen that was cut off before its end, and
no answer is chosen for its overall grade against one of higher accuracy.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from phikit.engine.base import Generator, Precision, Request, Sampling
from phikit.errors import PhikitError
from phikit.files import canonical_json, write_atomic
from phikit.records import Pair, Rollout, Sample, write_records
from phikit.stage import Config, Context, Estimate, Stage, given
from phikit.verify.base import Problem, read_problems
from phikit.verify.judge import Grades, Judge

if TYPE_CHECKING:
    from phikit.engine.local import LocalEngine

DECLINED = "refusal"  # the verifier of problems that must be declined


class JudgePairsConfig(Config):
    """How answers are drawn and paired.

    Attributes:
        prompts: how many problems; those of the file in an order drawn from the seed.
        responses: answers from each model to each problem.
        temperature, top_p, max_tokens: how they are drawn.
        min_accuracy_gap: a pair by accuracy differs at least so much in it (grades are 1 to 5).
        min_overall_gap: a pair by overall differs at least so much in the mean of the grades.
        pairs_per_prompt: at most so many pairs of each of the two kinds from one problem.
        refusal_share: of the pairs, at most this share is about problems that must be declined;
            the report's rounds carry 1 to 5 % of hallucination and safety data. 0 leaves them out.
        judge_retries, judge_tokens: for a model as the judge (the input "judge").
        batch: sequences generated at once.
        precision: of the weights; bf16 is faster where they are stored in f32.
    """

    prompts: int = Field(300, ge=1)
    responses: int = Field(4, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(192, ge=1)
    min_accuracy_gap: float = Field(2.0, gt=0, le=4)
    min_overall_gap: float = Field(1.0, gt=0, le=4)
    pairs_per_prompt: int = Field(2, ge=1)
    refusal_share: float = Field(0.03, ge=0, le=0.5)
    judge_retries: int = Field(2, ge=0)
    judge_tokens: int = Field(1024, ge=1)
    batch: int = Field(256, ge=1)
    precision: Precision = "stored"


@dataclass(frozen=True)
class Judged:
    """One answer of one model, and what the judge thinks of it."""

    model: int
    sample: int
    rollout: Rollout
    text: str
    grades: Grades | None = None

    @property
    def evidence(self) -> dict[str, Any]:
        assert self.grades is not None
        grades = asdict(self.grades) | {"overall": round(self.grades.overall, 4)}
        return {"model": self.model, "sample": self.sample, "text": self.text, **grades}


# --- pairs: pure functions -----------------------------------------------------------------------


def make_pairs(
    problem: Problem, answers: Sequence[Judged], config: JudgePairsConfig, seed: int
) -> list[Pair]:
    """The pairs of one problem: by accuracy first, then by overall where accuracy made none.

    Which ones are kept, if there are more than `pairs_per_prompt` of a kind, depends on the seed
    and the problem alone. An answer that several models gave is not paired with itself.
    """
    order = list(itertools.permutations([a for a in answers if a.grades], 2))
    Random(f"{seed}/judge-pairs/{problem.id}").shuffle(order)
    pairs: list[Pair] = []
    used: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    kinds: tuple[Literal["accuracy", "overall"], ...] = ("accuracy", "overall")
    for by in kinds:
        made = 0
        for chosen, rejected in order:
            ids = (chosen.rollout.completion_ids, rejected.rollout.completion_ids)
            if made == config.pairs_per_prompt:
                break
            if ids in used or not prefers(by, chosen, rejected, config):
                continue
            used.add(ids)
            made += 1
            pairs.append(_pair(problem, by, chosen, rejected))
    return pairs


def prefers(
    by: Literal["accuracy", "overall"], chosen: Judged, rejected: Judged, config: JudgePairsConfig
) -> bool:
    """Is the first answer better than the second by enough, and fit to be learnt from?"""
    if chosen.grades is None or rejected.grades is None or chosen.rollout.finish != "stop":
        return False
    accuracy = chosen.grades.accuracy - rejected.grades.accuracy
    if by == "accuracy":
        return accuracy >= config.min_accuracy_gap
    overall = chosen.grades.overall - rejected.grades.overall
    return accuracy >= 0 and overall >= config.min_overall_gap - 1e-9


def _pair(problem: Problem, by: str, chosen: Judged, rejected: Judged) -> Pair:
    if chosen.rollout.prompt_ids != rejected.rollout.prompt_ids:
        raise PhikitError(
            f"models {chosen.model} and {rejected.model} read problem {problem.id} as other tokens",
            "judge_pairs compares models of one tokenizer and one chat format",
        )
    return Pair(
        prompt_ids=chosen.rollout.prompt_ids,
        chosen_ids=chosen.rollout.completion_ids,
        rejected_ids=rejected.rollout.completion_ids,
        kind="judge",
        parents=tuple(filter(None, (problem.id, chosen.rollout.id, rejected.rollout.id))),
        evidence={
            "by": by,
            "problem": problem.id,
            "problem_kind": problem.kind,
            "declined": problem.verifier == DECLINED,
            "chosen": chosen.evidence,
            "rejected": rejected.evidence,
        },
    )


def limit_refusals(pairs: Sequence[Pair], share: float) -> list[Pair]:
    """All pairs, with those about problems to be declined cut down to `share` of the whole."""
    others = sum(not p.evidence["declined"] for p in pairs)
    room = math.floor(share * others / (1 - share) + 1e-9)
    kept = []
    for pair in pairs:
        if pair.evidence["declined"]:
            if not room:
                continue
            room -= 1
        kept.append(pair)
    return kept


def choose_problems(samples: Sequence[Sample], config: JudgePairsConfig, seed: int) -> list[Sample]:
    """`prompts` problems in an order drawn from the seed.

    Twice the wanted share of them must be declined, if there are so many: not all will make pairs.
    """
    asked = list(samples)
    Random(f"{seed}/judge-pairs/problems").shuffle(asked)
    wanted = math.ceil(2 * config.refusal_share * config.prompts)
    declined = [s for s in asked if s.verifier == DECLINED][:wanted]
    others = [s for s in asked if s.verifier != DECLINED][: config.prompts - len(declined)]
    kept = {id(s) for s in (*declined, *others)}
    return [s for s in asked if id(s) in kept]


# --- drawing and judging -------------------------------------------------------------------------


def draw(
    generator: Generator,
    prompts: Sequence[tuple[int, ...]],
    sampling: Sampling,
    n: int,
    seeds: Sequence[int],
) -> Iterator[tuple[int, int, Rollout]]:
    """(prompt, sample, rollout) of `n` answers to each prompt, in order of finishing."""
    requests = [Request(p, sampling, n=n, seed=s) for p, s in zip(prompts, seeds, strict=True)]
    for done in generator.generate(requests):
        yield done.request, done.sample, done.rollout


def spend(ctx: Context, engine: LocalEngine, rollout: Rollout, read: bool) -> None:
    """Adds a rollout to the stage's cost; `read`: its prompt too, once for all that continue it."""
    flops_per_token = engine.model.config.flops_per_token
    new, context = len(rollout.completion_ids), len(rollout.prompt_ids)
    ctx.cost.tokens_generated += new
    ctx.cost.flops += new * flops_per_token(context + new // 2)
    if read:
        ctx.cost.flops += context * flops_per_token(context // 2)


def grade(judge: Judge, problem: Problem, answers: Sequence[Judged]) -> list[Judged]:
    """The same answers with grades. Equal texts are judged once."""
    texts = list(dict.fromkeys(a.text for a in answers))
    grades = dict(zip(texts, judge.judge(problem, texts), strict=True))
    return [Judged(a.model, a.sample, a.rollout, a.text, grades[a.text]) for a in answers]


def stream_seed(*parts: object) -> int:
    """A request's seed from what names it."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


# --- the stage -----------------------------------------------------------------------------------


def run_judge_pairs(
    ctx: Context, config: JudgePairsConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes pairs.parquet and judged.jsonl (every answer with its grades, or why it has none)."""
    from phikit.verify.judge import LlmJudge, RubricJudge

    samples = choose_problems(read_problems(inputs["problems"]), config, ctx.seed)
    folders = given(inputs, "models")
    answers: list[list[Judged]] = [[] for _ in samples]
    too_long: set[int] = set()
    for number, folder in enumerate(folders):
        too_long |= _answer(ctx, config, number, len(folders), folder, samples, answers)
    if not any(answers):
        raise PhikitError(
            f"synth.judge_pairs: none of {len(samples)} problems leaves room for an answer in the "
            "models' contexts",
            "give shorter problems, or models of a longer context",
        )
    judge: Judge = _llm_judge(ctx, config, inputs["judge"]) if "judge" in inputs else RubricJudge()
    pairs: list[Pair] = []
    judged: list[list[Judged]] = []
    for number, sample in enumerate(samples):
        problem = Problem.of(sample)
        judged.append(grade(judge, problem, answers[number]))
        pairs += make_pairs(problem, judged[-1], config, ctx.seed)
        ctx.progress.update(number + 1, len(samples), pairs=len(pairs))
    pairs = limit_refusals(pairs, config.refusal_share)
    reasons = judge.reasons if isinstance(judge, LlmJudge) else {}
    write_records(ctx.dir / "pairs.parquet", pairs, Pair)
    write_atomic(ctx.dir / "judged.jsonl", "".join(_rows(samples, judged, reasons)))
    summary = summarise(samples, judged, pairs, judge.name) | {"too_long": len(too_long)}
    if isinstance(judge, LlmJudge):
        summary["judge_report"] = asdict(judge.report) | {"agreement": judge.report.agreement}
    return summary


def _answer(
    ctx: Context,
    config: JudgePairsConfig,
    number: int,
    models: int,
    folder: Path,
    samples: Sequence[Sample],
    answers: list[list[Judged]],
) -> set[int]:
    """Adds a model's answers to each problem's, in the order of their numbers.

    Returns:
        the problems that it was not asked, for they leave no room in its context.
    """
    from phikit.engine.load import open_chat

    engine, chat = open_chat(folder / "model", config.batch, config.precision)
    prompts = [tuple(chat.render(s.prompt, generation_prompt=True).ids) for s in samples]
    asked = [i for i, ids in enumerate(prompts) if len(ids) < engine.model.config.max_positions]
    sampling = Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        stop_ids=chat.stop_ids,
    )
    seeds = [stream_seed(ctx.seed, "judge-pairs", number, samples[i].id) for i in asked]
    each = len(asked) * config.responses
    drawn = draw(engine, [prompts[i] for i in asked], sampling, config.responses, seeds)
    for done, (place, sample, rollout) in enumerate(drawn, 1):
        text = chat.text(rollout.completion_ids)
        answers[asked[place]].append(Judged(number, sample, rollout, text))
        ctx.progress.update(number * each + done, models * each)
        spend(ctx, engine, rollout, read=sample == 0)
    for group in answers:
        group.sort(key=lambda a: (a.model, a.sample))
    return set(range(len(samples))).difference(asked)


def _llm_judge(ctx: Context, config: JudgePairsConfig, folder: Path) -> Judge:
    from phikit.engine.load import open_chat
    from phikit.verify.judge import LlmJudge

    engine, chat = open_chat(folder / "model", config.batch, config.precision)
    return LlmJudge(
        engine,
        render=lambda text: (
            chat.render([{"role": "user", "content": text}], generation_prompt=True).ids
        ),
        read=chat.text,
        sampling=Sampling(temperature=0.7, max_tokens=config.judge_tokens, stop_ids=chat.stop_ids),
        retries=config.judge_retries,
        seed=stream_seed(ctx.seed, "judge"),
        context=engine.model.config.max_positions,
    )


def _rows(
    samples: Sequence[Sample], judged: Sequence[Sequence[Judged]], reasons: Mapping[str, str]
) -> Iterator[str]:
    for sample, answers in zip(samples, judged, strict=True):
        for a in answers:
            row = {
                "problem": sample.id,
                "kind": sample.kind,
                "model": a.model,
                "sample": a.sample,
                "finish": a.rollout.finish,
                "text": a.text,
                "grades": asdict(a.grades) if a.grades else None,
                **({} if a.grades else {"ungraded": reasons[sample.id]}),
            }
            yield canonical_json(row) + "\n"


def summarise(
    samples: Sequence[Sample],
    judged: Sequence[Sequence[Judged]],
    pairs: Sequence[Pair],
    judge: str,
) -> dict[str, Any]:
    """Counts, and mean grades per model."""
    answers = [a for group in judged for a in group]
    by_model: dict[int, list[Grades]] = {}
    for a in answers:
        if a.grades:
            by_model.setdefault(a.model, []).append(a.grades)
    declined = sum(p.evidence["declined"] for p in pairs)
    return {
        "judge": judge,
        "prompts": len(samples),
        "responses": len(answers),
        "ungraded": sum(a.grades is None for a in answers),
        "unfinished": sum(a.rollout.finish != "stop" for a in answers),
        "pairs": len(pairs),
        "pairs_by": dict(sorted(Counter(p.evidence["by"] for p in pairs).items())),
        "prompts_with_pairs": len({p.evidence["problem"] for p in pairs}),
        "refusal_pairs": declined,
        "refusal_share": declined / len(pairs) if pairs else 0.0,
        "mean_grades": [
            {
                "model": model,
                "accuracy": _average([g.accuracy for g in grades]),
                "style": _average([g.style for g in grades]),
                "detail": _average([g.detail for g in grades]),
                "overall": _average([g.overall for g in grades]),
            }
            for model, grades in sorted(by_model.items())
        ],
    }


def _average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


JUDGE_STAGES: list[Stage[Any]] = [
    Stage(
        verb="synth.judge_pairs",
        config=JudgePairsConfig,
        run=run_judge_pairs,
        inputs=("models*", "problems", "judge?"),
        estimate=lambda c: Estimate(
            f"{c.prompts} problems × {c.responses} answers per model",
            seconds=2.0,
            tokens=c.prompts * 200.0,
            generated=c.prompts * c.responses * c.max_tokens / 3,
        ),
        help="several answers per problem, graded by a judge, paired by accuracy and overall",
    )
]
