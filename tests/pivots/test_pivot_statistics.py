"""What the pivots are, counted by hand on a written search and seen whole on a real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phikit.errors import PhikitError
from phikit.pivots import statistics
from phikit.pivots.read import SearchFolder, search_folder
from phikit.records import Pair, write_records

TEXTS = ["Ann", " has", " 3", " +", " 4", " =", " 7", ".", "\n", "<|im_end|>"]


def written(folder: Path) -> SearchFolder:
    """A search of one solution of ten tokens, with a pivot at " 4" and one at " 7"."""
    folder.mkdir()
    ids = list(range(100, 110))
    solution = {"ids": ids, "tokens": TEXTS, "passed": True,
                "probability": [0.9, 0.9, 0.9, 0.9, 0.4, 0.9, 0.7, 0.9, 0.9, 0.9]}  # fmt: skip
    trace = {"problem": "p", "kind": "sums", "prompt_ids": [1, 2], "solutions": [solution]}
    refused = {"problem": "q", "kind": "sums", "prompt_ids": [1, 3], "solutions": []}
    (folder / "searches.jsonl").write_text(json.dumps(trace) + "\n" + json.dumps(refused) + "\n")
    pivots = [
        {"problem": "p", "kind": "sums", "prefix_ids": [1, 2, *ids[:i]], "position": i,
         "token": ids[i], "token_text": TEXTS[i], "probability": solution["probability"][i],
         "solution_passed": True, "delta": delta, "p_before": 0.5}
        for i, delta in ((4, 0.35), (6, -0.5))
    ]  # fmt: skip
    pair = Pair(prompt_ids=(1, 2), chosen_ids=(104,), rejected_ids=(9,), kind="pivot",
                evidence={"verifier": "math", "domain": "sums"})  # fmt: skip
    write_records(folder / "pairs.parquet", [pair], Pair)
    return SearchFolder(folder, {}, pivots)


def test_counts_by_hand(tmp_path: Path) -> None:
    s = statistics.measure([written(tmp_path / "found")])
    assert (s.pivots, s.helping, s.questions, s.searched, s.solutions_with) == (2, 1, 2, 1, 1)
    assert (s.solution_tokens, s.improbable) == (10, 2)
    assert s.classes["number"] == statistics.Share(pivots=2, tokens=3)
    assert s.classes["end of line or answer"].tokens == 2
    assert [part.pivots for part in s.parts] == [0, 0, 1, 1, 0]
    assert s.sizes == [[0, 0], [1, 0], [0, 1], [0, 0], [0, 0]]
    assert s.unlikely == statistics.Share(pivots=1, tokens=1)
    assert s.in_right == [1, 1] and s.kinds["sums"] == [1, 1, 1]
    text = statistics.text(s)
    assert "2 (1 help, 1 harm)" in text and "math data" in text
    rows = statistics.as_json(s)["Where in a solution"]
    assert rows[2] == {"part": "40 to 60 %", "pivots": "1", "share": "50 %",
                       "of all tokens": "20 %"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", "number"), (" 1,234", "number"), (" +", "sign of arithmetic"),
     ("\n", "end of line or answer"), ("<|im_end|>", "end of line or answer"),
     (" ", "punctuation or space"), (".", "punctuation or space"),
     (" Ann", "name or capitalised word"), ("ing", statistics.WORD)],
)  # fmt: skip
def test_classes_of_tokens(text: str, expected: str) -> None:
    assert statistics.token_class(text) == expected


def test_of_a_real_search(found: Path) -> None:
    search = search_folder(found)
    once, twice = statistics.measure([search]), statistics.measure([search, search])
    assert once.pivots == len(search.pivots) and twice.pivots == 2 * once.pivots
    assert once.parts[0].pivots == once.pivots  # the first token alone decides
    assert once.solution_tokens == sum(c.tokens for c in once.classes.values())


def test_nothing_to_count(tmp_path: Path) -> None:
    none = written(tmp_path / "found")
    with pytest.raises(PhikitError, match="no pivot was confirmed"):
        statistics.measure([SearchFolder(none.path, {}, [])])
