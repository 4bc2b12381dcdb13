"""Chats and problems of one's own: what is read, and that a wrong line is named."""

import json
from pathlib import Path

import pytest

from phikit.data.stage_samples import SAMPLES, SamplesConfig
from phikit.errors import PhikitError
from phikit.records import Sample, read_records
from phikit.stage import Context
from phikit.verify.base import read_problems

ASK = {"role": "user", "content": "Why is the sky blue?"}
SAY = {"role": "assistant", "content": "Air scatters blue light most."}


def run(folder: Path, *rows: object, **settings: str) -> dict[str, int]:
    file = folder / "mine.jsonl"
    file.write_text("\n\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return SAMPLES.run(Context(folder), SamplesConfig(paths=(str(file),), **settings), {})


def test_chats_and_problems(tmp_path: Path) -> None:
    chat = {"messages": [ASK, SAY], "author": "Ann"}
    told = run(
        tmp_path, chat, {"prompt": ASK["content"], "response": SAY["content"]},
        {"prompt": "12 + 30?", "answer": 42}, chat, verifier="number", source="help-desk",
    )  # fmt: skip
    assert told == {"chats": 2, "problems": 1, "repeated": 1}
    first, second, third = read_records(tmp_path / "samples.parquet", Sample)
    assert first.messages == second.messages == (ASK, SAY)
    assert (first.response, first.meta, first.source) == (SAY["content"], {"author": "Ann"},
                                                          "help-desk")  # fmt: skip
    assert (third.verifier, third.answer, third.source) == ("number", "42", "help-desk")
    assert read_problems(tmp_path) == [third]  # what GRPO asks
    assert read_records(tmp_path / "items.parquet", Sample) == [third]  # what evaluations ask


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"mine\.jsonl:3: not valid JSON"),
        ({"messages": [ASK]}, r":3: neither an assistant.s message nor an answer"),
        ({"prompt": "2 + 2?", "answer": "4"}, r":3: names no verifier"),
        ({"messages": [ASK, SAY], "answer": "4", "verifier": "number"}, "nothing is asked"),
        ({"promt": "x", "response": "y"}, "did you mean 'promt'"),
    ],
)
def test_a_wrong_line_is_named(row: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(PhikitError, match=message):
        run(tmp_path, {"messages": [ASK, SAY]}, row)
    assert not (tmp_path / "samples.parquet").exists()


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PhikitError, match="no line in it"):
        run(tmp_path, "")
