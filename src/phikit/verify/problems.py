"""Problems out of a user's file: what is asked, and what an answer is checked against.

Three forms are read: a stage's folder, a Parquet file of `Sample` records, and JSON lines with a
problem each:

    {"prompt": "What is 12 + 30?", "answer": "42"}
    {"messages": [{"role": "user", "content": "..."}], "answer": "B", "verifier": "choice"}

"question" and "problem" are understood as "prompt"; "kind" (or "domain") names the kind of problem
in tables; whatever else stands there is kept as metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError, did_you_mean
from phikit.files import canonical_json, explain_os_errors
from phikit.records import Sample, read_records
from phikit.verify.base import BUILT_IN, VERIFIERS, read_problems

PROMPTS = ("prompt", "question", "problem")
KINDS = ("kind", "domain")
_KNOWN = {*PROMPTS, *KINDS, "messages", "answer", "verifier", "source"}
ROLES = ("system", "user", "assistant")


def load_problems(path: Path, verifier: str = "") -> list[Sample]:
    """The problems of a folder, a .parquet or a .jsonl file, in order.

    Args:
        verifier: judges the problems that name none themselves.

    Raises:
        PhikitError: the file is missing, holds no problem, or one that cannot be judged; names the
            file, the line and what is wrong.
    """
    if verifier:
        check_verifier(verifier, "--verifier")
    if path.is_dir():
        return read_problems(path)
    if path.suffix == ".parquet":
        samples = read_records(path, Sample)
    elif path.suffix in (".jsonl", ".json", ".ndjson"):
        samples = list(_json_lines(path, verifier))
    else:
        raise PhikitError(
            f"{path}: not a kind of file that problems are read from",
            "give JSON lines (.jsonl), a Parquet file of samples, or a stage's folder",
        )
    judged = [s for s in samples if s.verifier]
    if not judged:
        raise PhikitError(
            f"{path}: holds no problem that names a verifier",
            f"name one with --verifier: {', '.join(BUILT_IN)}",
        )
    return judged


def check_verifier(name: str, where: str) -> str:
    """The name, if there is such a verifier.

    Raises:
        PhikitError: there is none; names the nearest.
    """
    known = {*BUILT_IN, *VERIFIERS}
    if name not in known:
        raise PhikitError(f"{where}: no verifier is named {name!r}", did_you_mean(name, known))
    return name


def _json_lines(path: Path, verifier: str) -> Iterator[Sample]:
    with explain_os_errors(path, "reading"):
        lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _problem(line, f"{path}:{number}", verifier)


def _problem(line: str, where: str, verifier: str) -> Sample:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise PhikitError(f"{where}: not valid JSON: {e.msg} (column {e.colno})") from e
    if not isinstance(row, dict):
        raise PhikitError(f"{where}: a {type(row).__name__}, not an object", _EXAMPLE)
    judge = row.get("verifier") or verifier
    if not judge:
        raise PhikitError(
            f"{where}: names no verifier",
            f"name one for all with --verifier: {', '.join(BUILT_IN)}",
        )
    if "answer" not in row:
        raise PhikitError(f"{where}: has no 'answer'", did_you_mean("answer", row))
    answer = row["answer"]
    return Sample(
        kind=str(next((row[k] for k in KINDS if row.get(k)), judge)),
        source=str(row.get("source", "user")),
        messages=messages_of(row, where),
        verifier=check_verifier(str(judge), where),
        answer=answer if isinstance(answer, str) else canonical_json(answer),
        meta={k: v for k, v in row.items() if k not in _KNOWN},
    )


_EXAMPLE = 'write {"prompt": "What is 12 + 30?", "answer": "42"}, one to a line'


def messages_of(
    row: Mapping[str, Any], where: str, answered: bool = False
) -> tuple[Mapping[str, str], ...]:
    """The messages of a line, or its prompt as one.

    Args:
        answered: the last one may be the assistant's.

    Raises:
        PhikitError: there are none, or they are malformed; says `where`.
    """
    messages = row.get("messages")
    if messages is None:
        prompt = next((row[k] for k in PROMPTS if row.get(k)), None)
        if not isinstance(prompt, str):
            raise PhikitError(
                f"{where}: has no text under 'prompt', and no 'messages'",
                did_you_mean("prompt", row),
            )
        return ({"role": "user", "content": prompt},)
    if not isinstance(messages, list) or not messages:
        raise PhikitError(f"{where}: 'messages' is no list of messages", _EXAMPLE)
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise PhikitError(
                f"{where}: not a message: {json.dumps(message)[:80]}",
                f'a message is {{"role": ..., "content": text}}, its role one of {ROLES}',
            )
    if messages[-1]["role"] == "assistant" and not answered:
        raise PhikitError(
            f"{where}: the last message is the assistant's: nothing is asked",
            "end the messages with the user's",
        )
    return tuple(messages)
