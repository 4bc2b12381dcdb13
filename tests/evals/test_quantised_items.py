"""The problems of `phikit quantize --check` are read as small models answer."""

from phikit.evals.quantised import arithmetic_items
from phikit.verify.base import ByName, Problem


def test_a_number_in_plain_words_counts() -> None:
    items = arithmetic_items(6)
    right = [(Problem.of(i), f"First 2 + 2 = 4. So there are {i.answer} now.") for i in items]
    wrong = [(Problem.of(i), f"So there are {int(i.answer) + 1} now.") for i in items]
    verdicts = ByName().verify([*right, *wrong])
    assert [v.passed for v in verdicts] == [True] * 6 + [False] * 6
