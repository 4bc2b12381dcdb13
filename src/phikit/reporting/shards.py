"""Looking a text up in training shards: as the very tokens that a model was trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from phikit.chat.format import chat_format
from phikit.chat.templates import THINK
from phikit.chat.tokenizer import Tokenizer
from phikit.reporting.run_dir import Done, Run


class Place(NamedTuple):
    """How often a text is in the shards, and where first, in tokens in the order of training."""

    times: int
    first: int
    length: int
    tokens: int


def places(run: Run, shards: Done, text: str) -> Place | None:
    """Where a text is in a `data.shards` stage; None when its tokenizer is not there."""
    stage = run.by_name.get(shards.given("tokenizer"))
    if stage is None or not (stage.folder / "tokenizer").is_dir():
        return None
    tokenizer = Tokenizer.load(stage.folder / "tokenizer")
    end = chat_format(tokenizer).document_end_id
    bounds = np.load(shards.folder / "bounds.npy", mmap_mode="r")
    tokens = np.memmap(shards.folder / "tokens.bin", "<u4", "r")
    lengths = np.diff(bounds)
    starts: list[int] = []
    size = 0
    for ids in _readings(tokenizer, text, end):
        size = len(ids)
        for document in np.flatnonzero(lengths == size):
            begin = int(bounds[document])
            if np.array_equal(tokens[begin : begin + size], ids):
                starts.append(begin)
        if starts:
            break
    return Place(len(starts), min(starts, default=0), size, len(tokens))


def _readings(tokenizer: Tokenizer, text: str, end: int) -> list[np.ndarray]:
    """The text's tokens: as a document's, and as a trusted sample's with its control tokens."""
    plain = tokenizer.encode_batch([text])[0]
    readings = [np.array([*plain, end], "<u4")]
    if any(token in text for token in THINK):
        readings.append(np.array([*tokenizer.encode_control(text, THINK), end], "<u4"))
    return readings
