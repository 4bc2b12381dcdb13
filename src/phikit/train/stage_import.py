"""The stage `train.import`: a user's own chats, problems and preferences, from JSON lines.

A line is one of these; which of them, its keys say:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "What is 12 + 30?", "response": "42"}
    {"prompt": "What is 12 + 30?", "answer": "42", "verifier": "number"}
    {"prompt": "...", "chosen": "...", "rejected": "..."}
    {"prompt_ids": [5, 9], "chosen_ids": [7], "rejected_ids": [8]}

Chats and problems become samples.parquet (for train.sft, train.grpo and train.rollouts), problems
items.parquet too (for evals.run and decontamination), preferences pairs.parquet (for train.dpo).
Lines that say the same are all kept, as a user may mean them to weigh more, and are counted.
Ids are taken as they stand; texts are laid out by the model's chat format, end token included. The
heavy imports are inside the functions, so that a recipe is read and checked without torch.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import Field

from phikit.errors import PhikitError, did_you_mean
from phikit.files import canonical_json
from phikit.records import Pair, Sample, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.train.objectives.mixing import PairKind
from phikit.verify.own import VerifierName, files, short
from phikit.verify.problems import PROMPTS, check_verifier, json_lines, messages_of

if TYPE_CHECKING:
    from phikit.chat.format import ChatFormat

_ANSWERS = ("chosen", "rejected")
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_KNOWN = {
    "messages",
    *PROMPTS,
    "response",
    "answer",
    "verifier",
    "kind",
    "source",
    *_ANSWERS,
    *_IDS,
}


class ImportSettings(Config):
    """Which file, and what its lines are where they do not say."""

    file: str = Field(
        description="JSON lines: messages, or a prompt with its response, or with answer and "
        "verifier, or with chosen and rejected"
    )
    verifier: VerifierName = Field(
        default="",
        description="judges the answers of lines that name none; FILE.py:NAME for one of your own",
    )
    kind: PairKind = Field(default="judge", description="of the preferences that name none")


def run_import(
    ctx: Context, settings: ImportSettings, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Reads JSON lines into samples and pairs; the input model's chat template makes the ids.

    Returns:
        how many records of each sort were read, and how many of them only say again what another
        says.

    Raises:
        PhikitError: a line is neither sample nor pair, or the file holds none; names the line and
            what is missing.
    """
    from phikit.chat.format import chat_format
    from phikit.train.models import load_tokenizer

    chat = chat_format(load_tokenizer(inputs["model"])) if "model" in inputs else None
    samples: list[Sample] = []
    pairs: list[Pair] = []
    for where, row in json_lines(Path(settings.file)):
        if any(key in row for key in (*_ANSWERS, *_IDS)):
            pairs.append(_pair(row, where, chat, settings.kind))
        else:
            samples.append(_sample(row, where, short(settings.verifier)))
    if not samples and not pairs:
        raise PhikitError(f"{settings.file}: no line in it holds anything")
    if samples:
        write_records(ctx.dir / "samples.parquet", samples, Sample)
    if problems := [s for s in samples if s.verifier]:
        write_records(ctx.dir / "items.parquet", problems, Sample)
    if pairs:
        write_records(ctx.dir / "pairs.parquet", pairs, Pair)
    contents = [*map(_said, samples), *map(_preferred, pairs)]
    return {
        "chats": sum(bool(s.response) for s in samples),
        "problems": sum(bool(s.verifier) for s in samples),
        "pairs": len(pairs),
        "duplicates": len(contents) - len(set(contents)),
    }


def _said(sample: Sample) -> Hashable:
    """What is learned from a sample or asked by it, whatever else its line notes."""
    return canonical_json(sample.messages), sample.verifier, sample.answer


def _preferred(pair: Pair) -> Hashable:
    return pair.prompt_ids, pair.chosen_ids, pair.rejected_ids


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    text = row.get(key)
    if isinstance(text, str) and text:
        return text
    said = f"it is {json.dumps(row[key])[:40]}" if key in row else did_you_mean(key, row)
    raise PhikitError(f"{where}: has no text under {key!r}", said)


def _sample(row: Mapping[str, Any], where: str, verifier: str) -> Sample:
    """A chat with its answer, a problem to be judged, or both."""
    messages = messages_of(row, where, answered="response" not in row)
    if "response" in row:
        messages = (*messages, {"role": "assistant", "content": _text(row, "response", where)})
    judge, answer = str(row.get("verifier") or verifier), ""
    if "answer" in row:
        if not judge:
            raise PhikitError(f"{where}: an answer, and no verifier to judge by it",
                              "name one in the line, or set verifier for all")  # fmt: skip
        answer = row["answer"] if isinstance(row["answer"], str) else json.dumps(row["answer"])
    elif judge and "verifier" in row:
        raise PhikitError(f"{where}: has no 'answer'", did_you_mean("answer", row))
    else:
        judge = ""
    if not judge and messages[-1]["role"] != "assistant":
        raise PhikitError(
            f"{where}: neither an assistant's message to learn from nor an answer to judge by",
            did_you_mean("response", row),
        )
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        raise PhikitError(
            f"{where}: the assistant's last message is empty: there is nothing to learn",
            "write what it should say, or leave the line out",
        )
    return Sample(
        kind=str(row.get("kind") or judge or "chat"),
        source=str(row.get("source", "user")),
        messages=messages,
        verifier=check_verifier(judge, where) if judge else "",
        answer=answer,
        meta={k: v for k, v in row.items() if k not in _KNOWN},
    )


def _pair(row: Mapping[str, Any], where: str, chat: ChatFormat | None, kind: str) -> Pair:
    named: dict[str, Any] = {"kind": row.get("kind") or kind, "evidence": {"source": where}}
    if named["kind"] not in get_args(PairKind):
        raise PhikitError(f"{where}: no kind of preference is {named['kind']!r}",
                          did_you_mean(str(named["kind"]), get_args(PairKind)))  # fmt: skip
    if any(key in row for key in _IDS):
        for key in _IDS:
            ids = row.get(key)
            if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
                said = f"it is {json.dumps(ids)[:40]}" if key in row else did_you_mean(key, row)
                raise PhikitError(f"{where}: has no list of ids under {key!r}", said)
        prompt_ids, chosen_ids, rejected_ids = (tuple(row[key]) for key in _IDS)
        return Pair(
            prompt_ids=prompt_ids, chosen_ids=chosen_ids, rejected_ids=rejected_ids, **named
        )
    if chat is None:
        raise PhikitError(
            f"{where}: a preference in words, and no model whose chat format lays it out",
            "give --input model=DIR, or write prompt_ids, chosen_ids and rejected_ids",
        )
    prompt = messages_of(row, where)
    start = tuple(chat.render(prompt, generation_prompt=True).ids)
    answers = []
    for key in _ANSWERS:
        answer = {"role": "assistant", "content": _text(row, key, where)}
        whole = tuple(chat.render((*prompt, answer)).ids)
        answers.append(whole[len(start) : whole.index(chat.end_id, len(start)) + 1])
    return Pair(prompt_ids=start, chosen_ids=answers[0], rejected_ids=answers[1], **named)


STAGES: list[Stage[Any]] = [
    Stage(
        "train.import", ImportSettings, run_import, ("model?",),
        estimate=lambda s: Estimate(s.file), reads=lambda s: [s.file, *files([s.verifier])],
        help="your own chats, problems or preferences, from JSON lines",
    ),
]  # fmt: skip
