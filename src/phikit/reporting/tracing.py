"""`phikit data trace`: where a record is from, and what it went into.

Back: a sample's parents are documents, other samples, and stored replies of a teacher; a reply
leads to its request, which holds the prompt. Forward: the stages of a run that took the file it
stands in, and what they made; in shards it is looked up as the tokens that it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError
from phikit.ledger import STAGE_FOLDER
from phikit.records import Document, Sample
from phikit.reporting.builds import followed, step_of
from phikit.reporting.corpora import lines
from phikit.reporting.run_dir import Done, Run
from phikit.reporting.shards import Place, places
from phikit.reporting.sheets import Block, Section, Sheet
from phikit.reporting.tables import Stored, Tables, stored

_REPLY = re.compile(r"[0-9a-f]{32}\.\d+")
_DEEPEST = 6


def sheet(name: str, where: Sequence[Path]) -> Sheet:
    """The way of the record whose id is `name`, or begins with it.

    Args:
        where: run directories, stages' folders or files that are looked through.

    Raises:
        PhikitError: it is nowhere there, or several ids begin so.
    """
    trace = _Trace(where)
    file, row = trace.find(name)
    back = Section("Where it is from")
    back.blocks = list(trace.back(file, row, 0))
    if len(back.blocks) == 1:
        back.note = "It has no parents: its text was read, or written by a program."
    return Sheet(
        f"{file.kind.__name__} {row['id']}",
        f"In {file.path}" + (f", made by the stage {file.stage}" if file.stage else ""),
        [],
        [s for s in (back, *trace.forward(file, row)) if s.blocks or s.rows],
    )


class _Trace:
    def __init__(self, where: Sequence[Path]) -> None:
        self.where = where
        self.files = [f for path in where for f in stored(path, empty=len(where) > 1)]
        self.tables = Tables()
        self._replies: dict[str, dict[str, Any]] | None = None
        self._requests: dict[str, dict[str, Any]] = {}

    def find(self, name: str) -> tuple[Stored, dict[str, Any]]:
        found = list(self._look(name, "starts_with(id, ?)"))
        ids = {row["id"] for _, row in found}
        if not ids:
            raise PhikitError(
                f"no record {name!r} in {', '.join(map(str, self.where))}",
                "phikit data inspect shows ids; --in names other folders",
            )
        if len(ids) > 1:
            raise PhikitError(f"{len(ids)} ids begin with {name!r}", "give more of it")
        # where it was made comes before where it was only passed on
        return found[0]

    def _look(self, name: str, condition: str) -> Iterator[tuple[Stored, dict[str, Any]]]:
        for kind, columns in _COLUMNS.items():
            files = {str(f.path): f for f in self.files if f.kind is kind}
            found = self.tables.rows(
                f"SELECT filename, {', '.join(columns)} FROM read_parquet(?, filename = true) "
                f"WHERE {condition} ORDER BY filename",
                [f.path for f in files.values()],
                name,
            )
            for file, *values in found:
                yield files[file], dict(zip(columns, values, strict=True))

    # --- back ------------------------------------------------------------------------------------

    def back(self, file: Stored, row: dict[str, Any], depth: int) -> Iterator[Block]:
        """The record, then what it was made of, nearest first."""
        yield _shown(file, row)
        if depth == _DEEPEST:
            return
        for parent in row["parents"]:
            if _REPLY.fullmatch(parent):
                yield from self._reply(parent)
                continue
            above = next(self._look(parent, "id = ?"), None)
            if above is None:
                yield Block(f"parent {parent}", "", "not among the files given with --in")
            else:
                yield from self.back(*above, depth + 1)

    def _reply(self, name: str) -> Iterator[Block]:
        if self._replies is None:
            self._read_stores()
        assert self._replies is not None
        reply, request = self._replies.get(name), self._requests.get(name.partition(".")[0])
        if request is not None:
            turns = "\n".join(f"[{m['role']}] {m['content']}" for m in request["messages"])
            how = f"temperature {request['temperature']}, at most {request['max_tokens']} tokens"
            yield Block(f"prompt {request['id']}", turns, how)
        if reply is not None:
            used = f"{reply['prompt_tokens']} + {reply['completion_tokens']} tokens"
            yield Block(f"reply {name}", reply["text"], used)
        elif request is None:
            yield Block(f"reply {name}", "", "its store is not in the folders given with --in")

    def _read_stores(self) -> None:
        self._replies = {}
        folders = dict.fromkeys(f.path.parent for f in self.files)
        for folder in folders:
            stores = [folder / "replies.jsonl"]
            record = folder / "stage.json"
            if record.exists():
                config = json.loads(record.read_text(encoding="utf-8")).get("config") or {}
                stores += [Path(config["store"])] if config.get("store") else []
            for store in stores:
                for row in lines(store):
                    self._replies[f"{row['request']}.{row['attempt']}"] = row
            for row in lines(folder / "requests.jsonl"):
                self._requests[row["id"]] = row

    # --- forward ---------------------------------------------------------------------------------

    def forward(self, file: Stored, row: dict[str, Any]) -> Iterator[Section]:
        """What was made of it: records that name it, and stages that took its file."""
        made = Section("What was made of it", "", ("record", "of", "in"))
        for kind, columns in _COLUMNS.items():
            files = [f.path for f in self.files if f.kind is kind]
            label = columns[2]
            found = self.tables.rows(
                f"SELECT id, {label}, filename FROM read_parquet(?, filename = true) "
                "WHERE list_contains(parents, ?) ORDER BY filename, id LIMIT 20",
                files,
                row["id"],
            )
            made.rows = [*made.rows, *((str(i), str(of), str(path)) for i, of, path in found)]
        yield made
        stages = Section("What it went into", "", ("stage", "verb", "made", "how it is known"))
        if step_of(file.path):
            stages.rows = list(followed(file.path, row["id"]))
        for root in self._runs():
            stages.rows = [*stages.rows, *self._consumers(root, file, row)]
        yield stages

    def _runs(self) -> list[Path]:
        found = []
        for path in self.where:
            for place in (path, *path.resolve().parents[:2]):
                if place.is_dir() and any(STAGE_FOLDER.fullmatch(p.name) for p in place.iterdir()):
                    found.append(place)
                    break
        return list(dict.fromkeys(found))

    def _consumers(
        self, root: Path, file: Stored, row: dict[str, Any]
    ) -> Iterator[tuple[str, ...]]:
        run = Run(root)
        home = next(
            (s for s in run.stages if s.folder.resolve() in file.path.resolve().parents), None
        )
        if home is None or file.role == "rejected":
            return
        whole = next(
            (f for f in self.files if f.stage == home.name and f.role == "documents"), None
        )
        if file.role == "passed" and whole is not None and not self._holds(whole, row["id"]):
            return
        dropped = self._dropped(run, home, row["id"])
        for stage in run.consumers(home.name):
            if stage.name in dropped:
                continue
            yield stage.name, stage.verb, _made(stage), self._evidence(run, stage, row)

    def _dropped(self, run: Run, home: Done, name: str) -> set[str]:
        """Stages that pass records on, and did not pass this one; and what only they feed."""
        passers = {f.stage: f for f in self.files if f.kind in (Document, Sample)}
        reached, dropped = {home.name}, set()
        for stage in run.stages:
            if not reached & set(stage.parents):
                continue
            passes = stage.verb in ("data.decontaminate", "data.part", "data.documents")
            if passes and stage.name in passers and not self._holds(passers[stage.name], name):
                dropped.add(stage.name)
            else:
                reached.add(stage.name)
        return dropped | {s.name for s in run.consumers(home.name)} - reached

    def _holds(self, file: Stored, name: str) -> bool:
        sql = "SELECT count(*) FROM read_parquet(?) WHERE id = ?"
        return bool(self.tables.rows(sql, [file.path], name)[0][0])

    @staticmethod
    def _evidence(run: Run, stage: Done, row: dict[str, Any]) -> str:
        if stage.verb != "data.shards":
            return "by its inputs"
        found: Place | None = places(run, stage, row["text"])
        if found is None:
            return "by its inputs; the tokenizer is not here"
        if not found.times:
            return "not drawn into these shards"
        first = f"from token {found.first:,} of {found.tokens:,}"
        times = "once" if found.times == 1 else f"{found.times} times"
        return f"its {found.length:,} tokens are there {times}, {first}"


_COLUMNS: dict[type, tuple[str, ...]] = {
    Sample: ("id", "parents", "kind", "source", "text", "messages", "verdicts", "meta"),
    Document: ("id", "parents", "source", "licence", "text", "meta"),
}


def _made(stage: Done) -> str:
    if (stage.folder / "model").is_dir():
        return "checkpoint"
    kinds = {"data.shards": "shards", "evals.run": "scores", "data.tokenizer": "tokenizer"}
    return kinds.get(stage.verb, "records")


def _shown(file: Stored, row: dict[str, Any]) -> Block:
    if file.kind is Document:
        about = "; ".join(filter(None, (row["source"], row["licence"], row["meta"])))
        return Block(f"document {row['id']}", row["text"], about)
    turns = [f"[{m['role']}] {m['content']}" for m in json.loads(row["messages"])]
    verdicts = "\n".join(
        f"{'✓' if v['passed'] else '✗'} {v['verifier']}: {v['reason']}" for v in row["verdicts"]
    )
    meta = json.loads(row["meta"])
    known = ("teacher", "stream", "index", "drawn", "topic", "slip")
    about = ", ".join(f"{key} {meta[key]}" for key in known if key in meta)
    where = f"{row['kind']}, {file.stage or file.path.parent.name}" + (
        f"; {about}" if about else ""
    )
    text = "\n".join(turns) or row["text"]
    return Block(f"sample {row['id']}", f"{text}\n\nverdicts:\n{verdicts or '(none)'}", where)
