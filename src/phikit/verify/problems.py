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
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError, did_you_mean
from phikit.files import canonical_json, explain_os_errors
from phikit.records import Sample, read_records
from phikit.verify.base import (
    BUILT_IN,
    Demanding,
    Problem,
    Verifier,
    check_name,
    get,
    read_problems,
)
from phikit.verify.own import load

PROMPTS = ("prompt", "question", "problem")
KINDS = ("kind", "domain")
_KNOWN = {*PROMPTS, *KINDS, "messages", "answer", "verifier", "source"}
ROLES = ("system", "user", "assistant")
_BY_FINAL_ANSWER = ("math", "number", "choice", "exact")  # a right answer can be written out


def load_problems(path: Path, verifier: str = "") -> list[Sample]:
    """The problems of a folder, a .parquet or a .jsonl file, in order.

    Args:
        verifier: judges the problems that name none themselves; may name a file (`verify.own`).

    Raises:
        PhikitError: the file is missing, holds no problem, or one that cannot be judged; names the
            file, the line and what is wrong.
    """
    if verifier and ":" not in verifier:
        check_verifier(verifier, "--verifier")
    verifier = load(verifier) if verifier else ""
    if path.is_dir():
        return read_problems(path)
    if path.suffix == ".parquet":
        try:
            samples = read_records(path, Sample)
        except PhikitError as e:
            raise PhikitError(e.message, "give a Parquet file of samples, or JSON lines") from e
    elif path.suffix in (".jsonl", ".json", ".ndjson"):
        samples = [_problem(row, where, verifier) for where, row in json_lines(path, _EXAMPLE)]
    else:
        raise PhikitError(
            f"{path}: not a kind of file that problems are read from",
            "give JSON lines (.jsonl), a Parquet file of samples, or a stage's folder",
        )
    if not samples:
        raise PhikitError(f"{path}: holds no problem", _EXAMPLE)
    judged = [s for s in samples if s.verifier]
    if not judged:
        raise PhikitError(
            f"{path}: none of its {len(samples)} samples names a verifier",
            "give them as JSON lines, with --verifier",
        )
    return judged


def check_verifier(name: str, where: str) -> str:
    """The name, if there is such a verifier.

    Raises:
        PhikitError: there is none; names the nearest.
    """
    try:
        check_name(name)
    except PhikitError as e:
        raise PhikitError(f"{where}: {e.message}", e.hint) from e
    return name


def json_lines(path: Path, form: str = "", text: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file, with the file and line that it stands in.

    Args:
        form: a hint for whoever wrote something else.
        text: the key of what a line holds that is a text alone; "" refuses such lines.

    Raises:
        PhikitError: a line is no object, or holds what can be neither stored nor compared (half a
            character, a number that JSON does not know); names the line.
    """
    with explain_os_errors(path, "reading"):
        data = path.read_bytes()
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = _parsed(line, where)
        if text and isinstance(row, str):
            row = {text: row}
        if not isinstance(row, dict):
            raise PhikitError(f"{where}: a {type(row).__name__}, not an object", form)
        yield where, row


def _parsed(line: bytes, where: str) -> Any:
    try:
        row = json.loads(line.decode(), parse_float=_finite, parse_constant=_finite)
        canonical_json(row).encode()
    except json.JSONDecodeError as e:
        raise PhikitError(f"{where}: not valid JSON: {e.msg} (column {e.colno})") from e
    except UnicodeDecodeError as e:
        raise PhikitError(f"{where}: not UTF-8 (byte {e.start + 1})", "save it as UTF-8") from e
    except UnicodeEncodeError as e:
        half = ascii(e.object[e.start])
        raise PhikitError(f"{where}: {half} is half a character, which no text can hold") from e
    except RecursionError as e:
        raise PhikitError(f"{where}: nested too deeply") from e
    except ValueError as e:
        said = str(e).partition(":")[0]  # a number of thousands of digits, or none at all
        raise PhikitError(f"{where}: {said}", "write it as text, in quotes") from e
    return row


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no number that JSON knows")
    return value


def _problem(row: Mapping[str, Any], where: str, verifier: str) -> Sample:
    judge = row.get("verifier") or verifier
    if not judge:
        raise PhikitError(
            f"{where}: names no verifier",
            f"name one for all with --verifier: {', '.join(BUILT_IN)}, or FILE.py:NAME",
        )
    answer = row.get("answer")
    if answer is None:
        others = [key for key in row if key != "answer"]
        raise PhikitError(f"{where}: has no 'answer'", did_you_mean("answer", others))
    sample = Sample(
        kind=str(next((row[k] for k in KINDS if row.get(k)), judge)),
        source=str(row.get("source", "user")),
        messages=messages_of(row, where),
        verifier=check_verifier(str(judge), where),
        answer=answer if isinstance(answer, str) else canonical_json(answer),
        meta={k: v for k, v in row.items() if k not in _KNOWN},
    )
    check_answer(Problem.of(sample), where)
    return sample


def check_answer(problem: Problem, where: str) -> None:
    """Refuses an answer that its own verifier would not find right, as nothing ever could be, and
    demands that nothing could keep to.

    Raises:
        PhikitError: it is one; says `where`.
    """
    answer, name = problem.answer, problem.verifier
    if name in _BY_FINAL_ANSWER:
        said = (f"Answer: {answer}", f"\\boxed{{{answer}}}")
        verdicts = get(name).verify([(problem, text) for text in said])
        if not any(v.passed for v in verdicts):
            raise PhikitError(
                f"{where}: no response could be right: the verifier {name!r} does not even "
                f"accept the answer {answer[:80]!r} itself ({verdicts[0].reason})",
                "write the answer as this verifier wants it, or name another verifier",
            )
    elif name in BUILT_IN and (why := _impossible(get(name), answer, where)):
        raise PhikitError(
            f"{where}: no response could be right: {why}", "change the demand, or leave it out"
        )


def _impossible(verifier: Verifier, answer: str, where: str) -> str:
    return verifier.impossible(answer, where) if isinstance(verifier, Demanding) else ""


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
        key = next((k for k in PROMPTS if row.get(k)), "prompt")
        prompt = row.get(key)
        if not isinstance(prompt, str) or not prompt.strip():
            found = f"it is {json.dumps(prompt)[:40]}" if key in row else did_you_mean(key, row)
            raise PhikitError(f"{where}: has no text under {key!r}, and no 'messages'", found)
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
