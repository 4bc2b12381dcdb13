"""A user's own lines, as the stages take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from train_fixtures import SPECIAL

from phikit.chat.format import chat_format
from phikit.chat.tokenizer import train_bpe
from phikit.errors import PhikitError
from phikit.records import Pair, Sample, read_records
from phikit.stage import Context
from phikit.train.stages import STAGES

IMPORT = next(stage for stage in STAGES if stage.verb == "train.import")


def brought(folder: Path, lines: list[Any], settings: dict[str, Any], **inputs: Path) -> Any:
    file = folder / "own.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(text))
    return IMPORT.run(Context(folder), IMPORT.config(file=str(file), **settings), inputs)


def test_chats_problems_and_preferences(tmp_path: Path) -> None:
    tokenizer = train_bpe(["What is 1 + 2? Answer: 3 or 4, says he"], 300, SPECIAL)
    tokenizer.save(tmp_path / "tokenizer")
    ask = {"role": "user", "content": "What is 1 + 2?"}
    done = brought(
        tmp_path,
        [
            {"messages": [ask, {"role": "assistant", "content": "3"}], "colour": "red"},
            "",
            {"prompt": "What is 1 + 2?", "response": "3"},
            {"prompt": "What is 1 + 2?", "answer": 3},
            {"question": "?", "response": "B", "answer": "B", "verifier": "choice"},
            {"prompt": "What is 1 + 2?", "chosen": "3", "rejected": "4", "kind": "refusal"},
            {"messages": [ask], "chosen": "3", "rejected": "4"},
            {"prompt_ids": [5, 9], "chosen_ids": [7], "rejected_ids": [8, 9]},
        ],
        {"verifier": "number"},
        model=tmp_path,
    )
    assert done == {"chats": 3, "problems": 2, "pairs": 3, "duplicates": 2}
    samples = read_records(tmp_path / "samples.parquet", Sample)
    asked = [sample for sample in samples if sample.verifier]
    assert read_records(tmp_path / "items.parquet", Sample) == asked  # what evals.run reads
    assert [(s.response, s.verifier, s.answer) for s in samples] == [
        ("3", "", ""), ("3", "", ""), ("", "number", "3"), ("B", "choice", "B"),
    ]  # fmt: skip
    # a second line that says the same is kept, whatever it is called, and counted
    assert samples[0].meta == {"colour": "red"} and samples[0].messages == samples[1].messages
    pairs = read_records(tmp_path / "pairs.parquet", Pair)
    chat = chat_format(tokenizer)
    assert [p.kind for p in pairs] == ["refusal", "judge", "judge"]
    assert pairs[0].prompt_ids == tuple(chat.render([ask], generation_prompt=True).ids)
    assert pairs[0].chosen_ids == (*tokenizer.encode("3"), chat.end_id)
    assert pairs[1].rejected_ids == (*tokenizer.encode("4"), chat.end_id)
    ids = (pairs[2].prompt_ids, pairs[2].chosen_ids, pairs[2].rejected_ids)
    assert ids == ((5, 9), (7,), (8, 9))  # as they stand: no end token is added


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": ', "own.jsonl:3: not valid JSON"),
        ("[1]", "own.jsonl:3: a list, not an object"),
        ('{"prompt": "x", "answer": NaN, "verifier": "number"}', "own.jsonl:3: NaN is no number"),
        (r'{"prompt": "\ud83d", "response": "y"}', "own.jsonl:3: .* is half a character"),
        ("[" * 100_000, "own.jsonl:3: nested too deeply"),
        ({"promt": "x", "response": "y"}, "own.jsonl:3: has no text under 'prompt'"),
        (
            {"prompt": 1, "response": "y"},
            r"own.jsonl:3: has no text under 'prompt'(.|\n)*→ it is 1",
        ),
        ({"prompt": "x", "respnse": "y"}, "own.jsonl:3: neither .* to learn from"),
        ({"prompt": "x", "response": 5}, r"own.jsonl:3: has no text under 'response'\s+→ it is 5"),
        (
            {"prompt": "x", "response": ""},
            r"own.jsonl:3: has no text under 'response'\s+→ it is \"\"",
        ),
        ({"messages": [{"role": "usr", "content": "x"}]}, "own.jsonl:3: not a message"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]},
            "own.jsonl:3: the assistant's last message is empty",
        ),
        ({"prompt": "x", "answer": "y"}, "own.jsonl:3: an answer, and no verifier"),
        ({"prompt": "x", "answer": "y", "verifier": "mth"}, "own.jsonl:3: no verifier is named"),
        ({"prompt": "x", "verifier": "math"}, "own.jsonl:3: has no 'answer'"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "own.jsonl:3: a preference in words"),
        ({"prompt_ids": [1], "chosen_ids": []}, r"under 'chosen_ids'\s+→ it is \[\]"),
        (
            {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "kind": "juge"},
            "own.jsonl:3: no kind of preference is 'juge'",
        ),
        ({"prompt_ids": [1.5], "chosen_ids": [1]}, "own.jsonl:3: has no list of ids under 'prompt"),
    ],
)
def test_a_broken_line_is_named(line: Any, said: str, tmp_path: Path) -> None:
    good = {"prompt": "x", "response": "y"}
    with pytest.raises(PhikitError, match=said):
        brought(tmp_path, [good, "", line, good], {})
    assert not (tmp_path / "samples.parquet").exists()


def test_an_empty_or_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(PhikitError, match=r"own.jsonl: no line in it"):
        brought(tmp_path, ["", " "], {})
    with pytest.raises(PhikitError, match=r"no such file: .*none.jsonl"):
        IMPORT.run(Context(tmp_path), IMPORT.config(file=str(tmp_path / "none.jsonl")), {})
