"""`synth.gym`: problems of reasoning-gym, whose own scorers judge the answers.

Needs reasoning-gym: `pip install -e '.[gym]'`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from phikit.errors import PhikitError, did_you_mean, how_to_install
from phikit.records import Sample, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.synth.collect import Collector, shares
from phikit.synth.teacher import Candidate, pretraining_prompt
from phikit.verify.base import ByName, read_problems
from phikit.verify.gym import gold, refused


class GymConfig(Config):
    """Which problems are made.

    Attributes:
        count: how many of all datasets together.
        datasets: the weight of each dataset of reasoning-gym.
        settings: a dataset's own settings, such as {chain_sum: {max_terms: 2}}.
        instruction: added to every question.
        solved: write samples to train on, which answer with the line "Answer: ..."; else questions
            to be asked, together with those of the input `others`.
        seed_tag: names the random streams; stages with different tags get different problems.
    """

    count: int = Field(default=1000, ge=1)
    datasets: dict[str, float]
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    instruction: str = ""
    solved: bool = False
    seed_tag: str = "gym"


def run_gym(ctx: Context, config: GymConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Writes samples.parquet (`solved`) or items.parquet, and rejected.parquet.

    A problem is kept when its own answer passes its scorer after it was stored as JSON. With the
    input `items`, problems that stand there are left out.
    """
    stream = f"{ctx.seed}/{config.seed_tag}"
    known = read_problems(inputs["items"]) if "items" in inputs else []
    collector = Collector(known, ByName())
    for name, count in shares(config.count, config.datasets).items():
        write = _writer(name, config, stream)
        collector.fill(name, count, write, report=lambda: ctx.progress.update(
            len(collector.accepted), config.count, rejected=len(collector.rejected)))  # fmt: skip
    samples = collector.accepted
    if not config.solved:
        samples = [_question(s) for s in samples]
        samples += [_question(s) for s in (read_problems(inputs["others"])
                                           if "others" in inputs else [])]  # fmt: skip
    Random(f"{stream}/order").shuffle(samples)
    file = "samples.parquet" if config.solved else "items.parquet"
    write_records(ctx.dir / file, samples, Sample)
    write_records(ctx.dir / "rejected.parquet", collector.rejected, Sample)
    return collector.summary() | {"written": len(samples)}


def _question(sample: Sample) -> Sample:
    return replace(
        sample, id="", text=pretraining_prompt(sample), messages=sample.prompt, verdicts=()
    )


def _writer(
    name: str, config: GymConfig, stream: str
) -> Callable[[range], Iterable[Candidate | None]]:
    """Candidates by their numbers: each is a function of the stream, the dataset and its number."""
    make = _dataset(name)
    settings = config.settings.get(name, {})
    seed = Random(f"{stream}/{name}").getrandbits(31)

    def write(numbers: range) -> Iterable[Candidate | None]:
        try:
            entries = make(name, seed=seed, size=max(1, numbers.stop), **settings)
        except (TypeError, ValueError, AssertionError) as e:
            raise PhikitError(f"settings of reasoning-gym's {name}: {e}") from e
        return [_candidate(name, entries[i], config.instruction) for i in numbers]

    return write


def _candidate(name: str, entry: Mapping[str, Any], instruction: str) -> Candidate | None:
    if not isinstance(entry["answer"], str):
        return None
    try:
        answer = gold(name, dict(entry))
    except TypeError:  # its metadata cannot be stored as JSON
        return None
    question = str(entry["question"]).strip()
    return Candidate(
        kind=name,
        source="reasoning-gym",
        question=f"{question}\n{instruction}" if instruction else question,
        response=f"Answer: {entry['answer']}",
        answer=answer,
        verifier="gym",
        meta={"answer": json.loads(answer)["entry"]["answer"]},
    )


def _dataset(name: str) -> Callable[..., Any]:
    """How a dataset is made.

    Raises:
        PhikitError: reasoning-gym is missing, there is no such dataset, or it cannot be judged.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as e:
        raise PhikitError(f"synth.gym needs {e.name}", how_to_install("gym")) from e
    if name not in DATASETS:
        raise PhikitError(f"reasoning-gym has no dataset {name!r}", did_you_mean(name, DATASETS))
    if reason := refused(name):
        raise PhikitError(f"reasoning-gym's {name} cannot be used: {reason}")
    return create_dataset


GYM_STAGES: list[Stage[Any]] = [
    Stage(
        verb="synth.gym",
        config=GymConfig,
        run=run_gym,
        inputs=("items?", "others?"),
        estimate=lambda c: Estimate(f"{c.count:,} problems", 10.0 + c.count / 500),
        help="problems of reasoning-gym, judged by its own scorers",
    ),
]
