"""The stage `data.samples`: chats and problems of one's own, from JSON lines.

A line is a chat to train on, its last message the assistant's:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "...", "response": "..."}

or a problem to be asked and judged (see `verify.problems`):

    {"prompt": "What is 12 + 30?", "answer": "42", "verifier": "number"}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from phikit.errors import PhikitError
from phikit.records import Sample, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.verify.problems import json_lines, messages_of, problem

_FORMS = (
    'write {"prompt": ..., "response": ...} or {"messages": [...]} that ends with the '
    'assistant\'s for a chat, {"prompt": ..., "answer": ...} for a problem'
)


class SamplesConfig(Config):
    """Which files, and what to do where a line leaves it open."""

    paths: tuple[str, ...] = Field(
        min_length=1,
        description="files of JSON lines; a file that changes needs a new name for a recipe to see",
    )
    verifier: str = Field(default="", description="judges the problems that name none themselves")
    source: str = Field(default="user", description="the class in the mixture, for shards")


def run_samples(
    ctx: Context, settings: SamplesConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes samples.parquet, in the order of the files; equal lines are kept once. The problems
    also stand in items.parquet, where evaluations and decontamination look.

    Raises:
        PhikitError: a line is neither a chat nor a problem (names it), or there are none.
    """
    counts = Counter(chats=0, problems=0, repeated=0)
    seen: set[str] = set()
    problems: list[Sample] = []

    def samples() -> Iterator[Sample]:
        for path in settings.paths:
            for row, where in json_lines(Path(path)):
                sample = _sample(row, where, settings)
                if sample.id in seen:
                    counts["repeated"] += 1
                    continue
                seen.add(sample.id)
                counts["problems" if sample.verifier else "chats"] += 1
                if sample.verifier:
                    problems.append(sample)
                yield sample

    if not write_records(ctx.dir / "samples.parquet", samples(), Sample):
        raise PhikitError(f"{', '.join(settings.paths)}: no line in it", _FORMS)
    if problems:
        write_records(ctx.dir / "items.parquet", problems, Sample)
    return dict(counts)


def _sample(row: Mapping[str, Any], where: str, settings: SamplesConfig) -> Sample:
    row = {"source": settings.source, **row}
    if "answer" in row:
        return problem(row, where, settings.verifier)
    messages = messages_of(row, where)
    if messages[-1]["role"] != "assistant":
        if not isinstance(row.get("response"), str):
            raise PhikitError(f"{where}: neither an assistant's message nor an answer", _FORMS)
        messages = (*messages, {"role": "assistant", "content": row["response"]})
    known = {"prompt", "messages", "response", "source", "kind"}
    return Sample(
        kind=str(row.get("kind", "chat")),
        source=str(row["source"]),
        messages=messages,
        meta={key: value for key, value in row.items() if key not in known},
    )


SAMPLES: Stage[SamplesConfig] = Stage(
    verb="data.samples",
    config=SamplesConfig,
    run=run_samples,
    estimate=lambda c: Estimate(f"{len(c.paths)} files", 2),
    help="read your own chats and problems (JSON lines), to train on or to be asked",
)
