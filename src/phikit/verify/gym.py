"""The "gym" verifier: reasoning-gym's own scorers judge the answers to its problems.

They run in a process of their own that is killed when it takes too long. Scorers that hand text to
Python's `eval`, as some do by way of sympy, are not run: an answer is what a model wrote.
Needs reasoning-gym: `pip install -e '.[gym]'`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from phikit.errors import BadRecord, PhikitError, how_to_install
from phikit.records import Verdict
from phikit.verify.answer import after_thought, final_answer
from phikit.verify.base import Problem, register
from phikit.verify.verdicts import NO_ANSWER, shorten, verdict
from phikit.verify.worker import Worker

#: Datasets of reasoning-gym 0.1.25 whose scorers run text as Python.
EVALUATING = frozenset(
    ["binary_matrix", "bitwise_arithmetic", "codeio", "countdown", "intermediate_integration",
     "n_queens", "number_sorting", "polynomial_multiplication", "puzzle24", "simple_integration",
     "spiral_matrix", "string_insertion"]
)  # fmt: skip
#: Its scorer passes whatever is answered; its scorer fails on whatever is no list of factors.
UNSOUND = frozenset(["game_of_life_halting", "prime_factorization"])


def refused(dataset: str) -> str:
    """Why answers to this dataset's problems are not judged; nothing if they are."""
    if dataset in EVALUATING:
        return "its scorer runs text as Python"
    if dataset in UNSOUND:
        return "its scorer cannot tell right from wrong"
    return ""


def gold(dataset: str, entry: dict[str, object]) -> str:
    """`Problem.answer` for an entry of a dataset."""
    return json.dumps({"dataset": dataset, "entry": entry}, ensure_ascii=False, sort_keys=True)


@register("gym")
class GymVerifier:
    """`Problem.answer` is JSON: {"dataset": name, "entry": what the dataset gave for the problem}.

    The final answer is what `\\boxed{...}` or a line "Answer: ..." states, else the last line. It
    passes with a score of 1; what scorers give for a part of it stays the verdict's score.
    """

    name = "gym"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """
        Raises:
            PhikitError: reasoning-gym is not installed.
            BadRecord: the problem's answer is not of the form, or of a dataset that is not judged.
        """
        return [self._one(problem, text) for problem, text in items]

    def _one(self, problem: Problem, text: str) -> Verdict:
        stated = final_answer(text) or _last_line(after_thought(text) or "")
        if not stated:
            return verdict("gym", False, NO_ANSWER)
        return _judge(problem.answer, stated)


@functools.lru_cache(maxsize=65_536)
def _judge(answer: str, stated: str) -> Verdict:
    dataset, entry = _read(answer)
    if reason := refused(dataset):
        raise BadRecord(f"{dataset}: {reason}", "take another dataset of reasoning-gym")
    reply = _worker(os.getpid()).ask([dataset, entry, stated])
    told = f"answered {shorten(stated)}, expected {shorten(str(entry.get('answer')))}"
    if reply is None:
        return verdict("gym", False, f"{told}: scoring it took too long")
    if reply.get("missing"):
        raise PhikitError(f"judging {dataset}: {reply['error']}", how_to_install("gym"))
    score = min(1.0, max(0.0, reply["score"]))
    if score >= 1.0:
        return verdict("gym", True, "right, says its scorer")
    return verdict("gym", False, f"{told}: {reply['error'] or 'wrong'}", score)


def _read(answer: str) -> tuple[str, dict[str, object]]:
    try:
        row = json.loads(answer)
        return str(row["dataset"]), dict(row["entry"])
    except (ValueError, KeyError, TypeError) as e:
        raise BadRecord(
            f"not the answer of a reasoning-gym problem: {shorten(answer)}",
            'it is {"dataset": ..., "entry": {...}}, as the stage synth.gym writes it',
        ) from e


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


@functools.lru_cache(maxsize=1)
def _worker(pid: int) -> Worker:
    """This process's worker; by process number, so that a forked copy starts its own."""
    return Worker(Path(__file__).with_name("gym_worker.py"), first=None)
