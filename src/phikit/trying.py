"""`phikit synth try`: one sample of a declared dataset type, with every step visible."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phikit.errors import BadRecord, PhikitError
from phikit.files import explain_os_errors
from phikit.records import Verdict
from phikit.synth import declared_types
from phikit.synth.declared_run import Made, candidate, make
from phikit.synth.remote_teacher import Endpoint
from phikit.synth.replies import ReplyStore
from phikit.synth.seeds import Seed, SeedConfig, documents_at, of_documents
from phikit.synth.teachers import teacher_of
from phikit.verify.base import get


@dataclass(frozen=True)
class Chosen:
    """A teacher; see `phikit.synth.teachers.HasTeacher`."""

    local: str
    teacher: Endpoint
    batch: int = 1


def chosen(teacher: str, model: str, key_file: str) -> Chosen:
    """The teacher at an address, or a model on this machine."""
    if "://" in teacher:
        return Chosen("", Endpoint(url=teacher.rstrip("/"), model=model, key_file=key_file))
    return Chosen(teacher, Endpoint())


def one(
    name: str,
    asked: Chosen,
    store: Path,
    seed_file: Path | None,
    index: int,
    types: Path | None,
) -> str:
    """The steps, the sample and the verdicts, for people to read.

    Raises:
        PhikitError: there is no such type, it needs a seed that was not given, or its verifier
            cannot be run.
    """
    kind = declared_types.find_type(name, declared_types.read_types(types))
    if kind.seed != "none" and seed_file is None:
        raise PhikitError(f"{name} starts from a {kind.seed}", "give one with --seed-file FILE")
    seed = Seed()
    if kind.seed == "function" and seed_file is not None:
        found = of_documents(documents_at(seed_file), SeedConfig(), {"function"})
        seed = found.draw("function", name, "try", index)
    elif seed_file is not None:
        try:
            with explain_os_errors(seed_file, "reading"):
                seed = Seed(str(seed_file), seed_file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as e:
            raise PhikitError(
                f"{seed_file}: no text in UTF-8 ({e.reason})",
                "phikit data read FILE --out DIR makes text of other files",
            ) from e
    made, teacher = asyncio.run(_make(kind, asked, store, seed, index))
    return "\n".join(_shown(made, teacher))


async def _make(
    kind: declared_types.DeclaredType, asked: Chosen, store: Path, seed: Seed, index: int
) -> tuple[Made, str]:
    kept = ReplyStore(store)
    try:
        async with teacher_of(asked, {}, kept, 0) as teacher:
            return await make(kind, teacher, seed, "try", index), teacher.name
    finally:
        await kept.close()


def _shown(made: Made, teacher: str) -> Iterator[str]:
    for step, request, outcome in made.asked:
        yield f"=== step {step.name} " + "=" * max(3, 68 - len(step.name))
        for message in request.messages:
            yield f"[{message['role']}] {message['content']}"
        yield f"--- {outcome.status}{': ' + outcome.reason if outcome.reason else ''}"
        if outcome.value is not None:
            yield _readable(outcome.value)
    if made.status != "done":
        yield f"=== no sample: {made.status}: {made.reason}"
        return
    try:
        found = candidate(made, teacher)
    except BadRecord as e:
        yield f"=== no sample: rejected: form: {e.message}"
        return
    verdicts = list(found.verdicts)
    if found.verifier:
        try:
            verdicts += get(found.verifier).verify([(found.problem, found.response)])
        except BadRecord as e:  # the teacher's own tests or gold answer are of no use
            verdicts.append(
                Verdict(passed=False, score=0.0, reason=e.message, verifier=found.verifier)
            )
    yield "=== sample " + "=" * 66
    for message in found.messages:
        yield f"[{message['role']}] {message['content']}"
    if found.plain:
        yield found.text
    yield "=== verdicts " + "=" * 64
    yield from map(_line, verdicts)
    passed = all(v.passed for v in verdicts)
    yield f"{'accepted' if passed else 'rejected'}; made of {', '.join(found.parents)}"


def _line(verdict: Verdict) -> str:
    return f"{'✓' if verdict.passed else '✗'} {verdict.verifier}: {verdict.reason}"


def _readable(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
