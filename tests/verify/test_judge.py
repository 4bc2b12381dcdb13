import json
from collections.abc import Iterator, Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.engine.base import Finished, Request, Sampling
from phikit.records import Rollout
from phikit.verify.base import Problem
from phikit.verify.judge import Grades, LlmJudge, RubricJudge, parse_grades, style_faults
from phikit.verify.statements import evaluate, statements

PROBLEM = Problem("How many?", "42", "math", "changes", "p1")
GOOD = "He has 8 + 16 = 24.\nHe has 24 + 18 = 42.\nAnswer: 42"


def grades(text: str, problem: Problem = PROBLEM) -> tuple[float, float, float]:
    grade = RubricJudge().judge(problem, [text])[0]
    assert grade
    return grade.accuracy, grade.style, grade.detail


def test_statements_are_found_and_worked_out() -> None:
    text = "So 2 + 3 * 4 = 14, 10 / 4 = 2.5 and 1,000 - 1 = 998. 2 - -3 = 5"
    text += " but x + 1 + 2 = 9, 3 + 4 = 5 + 2 and (1 + 2) * 3 = 9 are not read"
    found = [(s.text, s.true) for s in statements(text)]
    assert found == [
        ("2 + 3 * 4 = 14", True),
        ("10 / 4 = 2.5", True),
        ("1,000 - 1 = 998", False),
        ("2 - -3 = 5", True),
    ]
    assert statements("1 / 0 = 0")[0].true is False


@given(st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(1, 99)), min_size=1, max_size=6))
def test_evaluate_agrees_with_python(terms: list[tuple[str, int]]) -> None:
    text = "7" + "".join(f" {op} {n}" for op, n in terms)
    exact = eval(
        "Fraction(7)" + "".join(f" {op} Fraction({n})" for op, n in terms), {"Fraction": Fraction}
    )
    assert evaluate(text) == exact


def test_the_rubric() -> None:
    assert grades(GOOD) == (5, 5, 5)
    assert grades("Answer: 42") == (5, 5, 1)
    assert grades(GOOD.replace("42", "41")) == (2, 5, 3)  # wrong, and one false statement
    assert grades("He has 8 + 16 = 24.") == (1, 4, 4)
    assert grades("") == (1, 1, 1)
    assert grades("I don't know.")[0] == 2
    unanswerable = Problem("How many?", "", "refusal")
    assert grades("It cannot be determined.\nAnswer: unknown", unanswerable)[0] == 5
    assert grades("Answer: 42", unanswerable)[0] == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD + "\nand so on", "does not end with its answer"),
        ("Step.\nStep.\nAnswer: 42", "repeats a line"),
        ("a b c d e f " * 3 + "\nAnswer: 42", "repeats a phrase"),
        ("8 + 16 = 24, 24 + 18 = 42\nAnswer: 42", "several steps on a line"),
        ("<|im_end|>\nAnswer: 42", "spells out control tokens"),
    ],
)
def test_style(text: str, fault: str) -> None:
    assert style_faults(text) == [fault]
    assert style_faults(GOOD) == []


def test_the_order_of_presentation_is_nothing_to_the_rubric() -> None:
    texts = [GOOD, "Answer: 42", "Answer: 1", ""]
    judge = RubricJudge()
    assert judge.judge(PROBLEM, texts) == judge.judge(PROBLEM, texts[::-1])[::-1]


# --- a model as the judge ------------------------------------------------------------------------


class Scripted:
    """A generator that says, letter by letter, what a function makes of the prompt."""

    def __init__(self, replies: list[str]) -> None:
        self.replies, self.prompts = replies, []  # type: ignore[var-annotated]

    def generate(self, requests: Sequence[Request]) -> Iterator[Finished]:
        for index, request in enumerate(requests):
            self.prompts.append("".join(map(chr, request.prompt_ids)))
            ids = tuple(map(ord, self.replies.pop(0)))
            rollout = Rollout(prompt_ids=request.prompt_ids, completion_ids=ids, logprobs=())
            yield Finished(index, 0, rollout)


def reply(*marks: int) -> str:
    rows = [
        {"response": n, "accuracy": m, "style": 3, "detail": 3, "reason": f"r{m}"}
        for n, m in enumerate(marks, 1)
    ]
    return json.dumps({"grades": rows})


def llm(replies: list[str], retries: int = 1) -> tuple[LlmJudge, Scripted]:
    generator = Scripted(replies)
    judge = LlmJudge(
        generator,
        render=lambda text: tuple(map(ord, text)),
        read=lambda ids: "".join(map(chr, ids)),
        sampling=Sampling(),
        retries=retries,
    )
    return judge, generator


def test_a_model_is_asked_in_both_orders() -> None:
    judge, generator = llm([reply(5, 1), reply(2, 5)])
    assert judge.judge(PROBLEM, ["first", "second"]) == [
        Grades(5, 3, 3, "r5"),
        Grades(1.5, 3, 3, "r1"),
    ]
    assert generator.prompts[0].index("first") < generator.prompts[0].index("second")
    assert generator.prompts[1].index("first") > generator.prompts[1].index("second")
    assert judge.report.agreement == 1.0


def test_a_model_that_favours_a_place_is_found_out() -> None:
    judge, _ = llm([reply(5, 1), reply(5, 1)])
    first, second = judge.judge(PROBLEM, ["first", "second"])
    assert first and second and first.overall == second.overall
    assert judge.report.agreement == 0.0


def test_malformed_replies_are_retried_counted_and_never_made_up() -> None:
    judge, _ = llm(["nonsense", reply(4), reply(4)])
    assert judge.judge(PROBLEM, ["first"]) == [Grades(4, 3, 3, "r4")]
    assert (judge.report.replies, judge.report.malformed, judge.report.failed) == (3, 1, 0)
    judge, _ = llm(["nonsense", "again", reply(4)])
    assert judge.judge(PROBLEM, ["first"]) == [None]
    assert (judge.report.malformed, judge.report.failed) == (2, 1)
    assert judge.report.agreement is None


def test_what_does_not_fit_the_judge_is_set_aside_with_its_reason() -> None:
    judge, generator = llm([reply(4), reply(4), "no", "no", reply(4)])
    judge.context = len(judge.prompt(PROBLEM, ["short"])) + 1
    assert judge.judge(PROBLEM, ["short"]) == [Grades(4, 3, 3, "r4")]
    assert judge.judge(PROBLEM, ["short", "more"]) == [None, None]
    assert (judge.report.too_long, judge.report.failed, len(generator.prompts)) == (2, 0, 2)
    assert f"the judge's context {judge.context}" in judge.reasons[PROBLEM.id]
    assert judge.judge(PROBLEM, ["short"]) == [None]
    assert "2 replies, none of them as asked for" in judge.reasons[PROBLEM.id]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "5", reply(5) + " ", reply(6), reply(0), reply(5, 5), "Here: " + reply(5),
        reply(5).replace("5", "5.0"), reply(5).replace("5", "true"), reply(5).replace('"r5"', "1"),
        reply(5).replace('"response": 1', '"response": 2'), reply(5).replace("style", "stile"),
    ],
)  # fmt: skip
def test_replies_are_read_strictly(text: str) -> None:
    expected = [Grades(5, 3, 3, "r5")] if text.strip() == reply(5) else None
    assert parse_grades(text, 1) == expected
