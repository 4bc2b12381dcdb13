"""The "format" verifier: is the response shaped as demanded, whatever it says?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from phikit.errors import BadRecord, did_you_mean
from phikit.records import Verdict
from phikit.verify.answer import after_thought, final_answer
from phikit.verify.base import Problem, register
from phikit.verify.verdicts import verdict


def _thought(text: str) -> str:
    """One thought, at the start, finished and not empty."""
    if not text.startswith("<think>"):
        return "does not start with <think>"
    if text.count("<think>") != 1 or text.count("</think>") != 1:
        return "does not have exactly one <think> and one </think>"
    if not text[len("<think>") : text.index("</think>")].strip():
        return "the thought is empty"
    return ""


def _answer(text: str) -> str:
    """A final answer, with nothing after the line that states it."""
    if final_answer(text) is None:
        return "states no final answer"
    last = (after_thought(text) or "").strip().rpartition("\n")[2]
    return "" if final_answer(last) is not None else "does not end with its final answer"


def _no_thought(text: str) -> str:
    return "contains a thought" if "<think>" in text or "</think>" in text else ""


# demand → (response → what is wrong with it, or nothing)
DEMANDS: dict[str, Callable[[str], str]] = {
    "thought": _thought,
    "no-thought": _no_thought,
    "answer": _answer,
}


def _demands(answer: str, where: str) -> list[str]:
    """
    Raises:
        BadRecord: a demand is unknown; names the nearest.
    """
    names = [name for part in answer.split(",") if (name := part.strip())]
    for name in names:
        if name not in DEMANDS:
            raise BadRecord(
                f"{where}: the verifier 'format' knows no demand {name!r}",
                did_you_mean(name, DEMANDS),
            )
    return names


@register("format")
class FormatVerifier:
    """`Problem.answer` names the demands, e.g. "thought, answer"."""

    name = "format"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Raises BadRecord where a problem makes an unknown demand."""
        return [self._one(problem, text) for problem, text in items]

    def impossible(self, answer: str, where: str) -> str:
        """See `phikit.verify.base.Demanding`."""
        both = {"thought", "no-thought"} <= set(_demands(answer, where))
        return "nothing keeps to both thought and no-thought" if both else ""

    def _one(self, problem: Problem, text: str) -> Verdict:
        for name in _demands(problem.answer, f"problem {problem.id or repr(problem.prompt[:40])}"):
            if wrong := DEMANDS[name](text):
                return verdict("format", False, wrong)
        return verdict("format", True, f"as demanded: {problem.answer}")
