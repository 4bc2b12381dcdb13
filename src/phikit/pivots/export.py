"""Pairs out to other trainers.

Every row carries the token ids, which are what was sampled and tested, and their text. A trainer
that tokenises the text again may cut it elsewhere, and may add the end token to it: TRL's
DPOTrainer (1.16) does both, whatever ids the data has, unless it is told to take them as they are
(`TRL_HINT`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phikit.errors import PhikitError, did_you_mean
from phikit.files import LineFile, explain_os_errors, fsync_path, temporary_name
from phikit.records import Pair, write_records

FORMS = ("trl", "parquet", "jsonl")
TRL_HINT = """\
DPOTrainer tokenises texts anew and ends them. Have it take the ids as they are:

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset"""
Decode = Callable[[Sequence[int]], str]


def export(pairs: Sequence[Pair], form: str, path: Path, decode: Decode) -> int:
    """Writes pairs to one file, whole or not at all; returns how many.

    Args:
        form: "trl": Parquet with prompt_ids, chosen_ids, rejected_ids (TRL's tokenised preference
            data) and the texts prompt, chosen, rejected beside them; "parquet": `Pair` records;
            "jsonl": a line for each pair with ids, texts and evidence.

    Raises:
        PhikitError: there is no such form, no pair, or the file cannot be written.
    """
    if form not in FORMS:
        raise PhikitError(f"no export is called {form!r}", did_you_mean(form, FORMS))
    if not pairs:
        raise PhikitError("there are no pairs to export", "search more problems")
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        return write_records(path, pairs, Pair)
    if form == "jsonl":
        with LineFile(path) as lines:
            for pair in pairs:
                lines.add(
                    {"id": pair.id, "parents": pair.parents, "kind": pair.kind,
                     **_row(pair, decode), "evidence": pair.evidence}
                )  # fmt: skip
        return len(pairs)
    temporary = temporary_name(path)
    with explain_os_errors(path, "writing"):
        pq.write_table(pa.Table.from_pylist([_row(p, decode) for p in pairs], _TRL), temporary)
        fsync_path(temporary)
        temporary.replace(path)
    return len(pairs)


_IDS = pa.list_(pa.int32())
_TRL = pa.schema(
    [("prompt_ids", _IDS), ("chosen_ids", _IDS), ("rejected_ids", _IDS),
     ("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string())]
)  # fmt: skip


def _row(pair: Pair, decode: Decode) -> dict[str, Any]:
    return {
        "prompt_ids": list(pair.prompt_ids),
        "chosen_ids": list(pair.chosen_ids),
        "rejected_ids": list(pair.rejected_ids),
        "prompt": decode(pair.prompt_ids),
        "chosen": decode(pair.chosen_ids),
        "rejected": decode(pair.rejected_ids),
    }
