"""Where in a response its final answer stands.

Only what follows the thought counts, and there only the last statement of an answer: a response
that tries several answers is judged by the one it ends with.
"""

from __future__ import annotations

import re

# "Answer: 12", "**Final answer:** 12", "> Answer: 12"; the text after it ends with its line
_ANSWER_LINE = re.compile(r"[\s*_#>\-]*(?:final\s+)?answer[\s*_]*:[\s*_]*(.*)", re.IGNORECASE)


def after_thought(text: str) -> str | None:
    """What follows the last </think>; all of the text without a thought; None in mid-thought."""
    tail = text.rpartition("</think>")[2]
    return None if "<think>" in tail else tail


def final_answer(text: str) -> str | None:
    r"""The last of `\boxed{...}` and lines "Answer: ..." after the thought; None if there is none.

    A last `\boxed{` whose braces never close (the response was cut off) is no answer.
    """
    tail = after_thought(text)
    if tail is None:
        return None
    line_at, line = _last_line(tail)
    box_at = tail.rfind("\\boxed")
    answer = _boxed(tail, box_at) if box_at > line_at else line
    return answer.strip() or None if answer else None


def _last_line(text: str) -> tuple[int, str | None]:
    """The last answer line's position and what follows its colon; (-1, None) if there is none."""
    end = len(text)
    while (at := max(text.rfind("nswer", 0, end), text.rfind("NSWER", 0, end))) >= 0:
        start = text.rfind("\n", 0, at) + 1
        stop = text.find("\n", at)
        found = _ANSWER_LINE.match(text, start, len(text) if stop < 0 else stop)
        if found and found.start(1) > at:
            return start, found[1].strip().rstrip("*_").rstrip()
        end = at
    return -1, None


def _boxed(text: str, at: int) -> str | None:
    r"""What is between the balanced braces of the \boxed at position `at`."""
    start = text.find("{", at)
    if start < 0 or text[at + len("\\boxed") : start].strip():
        return None
    depth = 0
    for i in range(start, len(text)):
        if text[i] == "{" and text[i - 1] != "\\":
            depth += 1
        elif text[i] == "}" and text[i - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[start + 1 : i]
    return None
