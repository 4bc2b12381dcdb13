"""`phikit pivots run`: a search by itself, in a folder of its own, that goes on when it was killed.

DIR/job.json       what is searched: the model's fingerprint, the problems, every setting
DIR/started.json   when this attempt began, and how long those before it worked
DIR/problems.parquet, pairs.parquet, pivots.jsonl, searches.jsonl, metrics.jsonl, rounds/
DIR/stage.json     the summary and the cost, written last: the search is done
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phikit import ledger, progress
from phikit.engine.base import Generator
from phikit.errors import PhikitError
from phikit.files import canonical_json, explain_os_errors, read_json, write_json
from phikit.memory import PeakMemory, keep_freed_memory
from phikit.pivots.config import PivotsConfig
from phikit.recipes.settings import from_settings
from phikit.records import Sample, write_records
from phikit.stage import Context
from phikit.verify.own import files, marks
from phikit.verify.problems import load_problems

VERB = "pivots.search"
_HEAD = 1 << 20  # bytes of each weight file that go into the fingerprint, with its size


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        model: its directory or file; with `url`, whose tokenizer is used.
        verifier: judges the problems that name none; FILE.py:NAME for one of the user's own.
        instruction: is added to the last message of each problem.
        url, name, key: of an endpoint that runs the model, its name there, and what opens it.
    """

    model: Path
    problems: Path
    verifier: str = ""
    instruction: str = ""
    settings: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 2
    url: str = ""
    name: str = ""
    key: str = ""


def run(job: Job, out: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the search, or what is left of it, and returns its stage.json.

    Raises:
        PhikitError: a file or a setting is wrong, `out` holds something else or another search, or
            another process works there.
    """
    samples = [_instructed(s, job.instruction) for s in load_problems(job.problems, job.verifier)]
    config = from_settings(PivotsConfig, job.settings, VERB)
    described = _describe(job, config, samples)
    _open(out, described)
    earlier = ledger.seconds_so_far(out)
    with ledger.locked(out):
        if (finished := ledger.done(out)) is not None:
            say(f"{out}: this search is done; --out names another folder for a new one")
            return finished
        write_json(out / "started.json", {"at": time.time(), "earlier_seconds": earlier})
        write_records(out / "problems.parquet", samples, Sample)
        return _search(job, config, samples, out, described, earlier)


def _search(
    job: Job,
    config: PivotsConfig,
    samples: Sequence[Sample],
    out: Path,
    described: dict[str, Any],
    earlier: float,
) -> dict[str, Any]:
    """What is left of the search, after attempts that worked for `earlier` seconds."""
    import torch

    from phikit.pivots.job import search_problems

    torch.set_num_threads(job.threads)
    keep_freed_memory()
    display = progress.for_terminal()
    begun, peak = time.monotonic(), PeakMemory()
    with peak, display.stage(VERB) as shown, explain_os_errors(out, "writing"):
        context = Context(out, job.seed, job.threads, shown)
        with _generator(job, config) as generator:
            summary = search_problems(context, config, job.model, samples, generator)
        context.close()
    record = {
        "verb": VERB,
        **described,
        "summary": summary,
        "cost": {
            **asdict(context.cost),
            "seconds": round(earlier + time.monotonic() - begun, 3),
            "peak_bytes": peak.bytes,
        },
    }
    write_json(out / "stage.json", record)
    return record


@contextmanager
def _generator(job: Job, config: PivotsConfig) -> Iterator[Generator | None]:
    """The endpoint that was named, or None to run the model here."""
    if not job.url:
        yield None
        return
    from phikit.engine.remote import RemoteGenerator

    with RemoteGenerator(job.url, job.name, job.key, in_flight=config.in_flight) as remote:
        yield remote


def _describe(job: Job, config: PivotsConfig, samples: Sequence[Sample]) -> dict[str, Any]:
    """All that the result depends on."""
    ids = canonical_json([s.id for s in samples])
    return {
        "model": str(job.model),
        "weights": _fingerprint(job.model),
        "problems": str(job.problems),
        "verifier_code": canonical_json(marks([job.verifier])) if files([job.verifier]) else "",
        "problem_ids": hashlib.sha256(ids.encode()).hexdigest()[:16],
        "config": config.model_dump(mode="json"),
        "seed": job.seed,
        "threads": job.threads,
        "endpoint": f"{job.name} at {job.url}" if job.url else "",
    }


def _open(out: Path, described: Mapping[str, Any]) -> None:
    """Makes the folder, or sees that the search that was begun there is this one."""
    path = out / "job.json"
    with explain_os_errors(out, "making the folder"):
        out.mkdir(parents=True, exist_ok=True)
        # what a kill may leave behind before anything was begun begins with a dot
        strangers = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    if not path.exists():
        if strangers:
            raise PhikitError(
                f"{out}: not empty (it holds {strangers[0]}), and no search was begun there",
                "choose another folder with --out",
            )
        write_json(path, described)
        return
    begun = read_json(path)
    for key in ("weights", "verifier_code", "problem_ids", "config", "seed", "threads", "endpoint"):
        if begun.get(key, "") != described[key]:
            raise PhikitError(
                f"{out}: another search was begun here: {_difference(key, begun, described)}",
                "choose another folder with --out, or ask for the same to go on",
            )


def _difference(key: str, begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key == "config":
        for name, value in now[key].items():
            if begun[key].get(name) != value:
                return f"{name} was {begun[key].get(name)!r}, now {value!r}"
    named = {
        "weights": "the model is another",
        "verifier_code": "the verifier's code is another",
        "problem_ids": "the problems are others",
    }
    was, is_now = ("none" if x in (None, "") else x for x in (begun.get(key), now[key]))
    return named.get(key) or f"{key} was {was}, now {is_now}"


def _fingerprint(model: Path) -> str:
    """Tells models apart without reading them whole: sizes and first bytes of their files."""
    state = hashlib.sha256()
    files = [model] if model.is_file() else sorted(model.glob("*.safetensors"))
    for file in [*files, model / "config.json", model / "tokenizer.json"]:
        if file.is_file():
            with explain_os_errors(file, "reading"), file.open("rb") as f:
                state.update(f"{file.name} {file.stat().st_size} ".encode() + f.read(_HEAD))
    return state.hexdigest()[:16]


def _instructed(sample: Sample, instruction: str) -> Sample:
    if not instruction:
        return sample
    messages = sample.prompt or ({"role": "user", "content": sample.text},)
    last = {**messages[-1], "content": f"{messages[-1]['content']}\n{instruction}"}
    return replace(sample, id="", messages=(*messages[:-1], last), parents=(sample.id,))


# --- What the terminal shows ---------------------------------------------------------------------


def table(out: Path, most: int = 20) -> str:
    """The largest confirmed pivots of a finished search, and what there is in all."""
    from phikit.pivots import read

    found = read.search_folder(out)
    summary = found.record["summary"]
    lines = []
    pivots = sorted(found.pivots, key=lambda p: -abs(p["delta"]))
    if pivots:
        lines += [f"{'token':>14}  {'p before → after':>16}  {'change (95 %)':<24} kind",
                  *map(_row, pivots[:most])]  # fmt: skip
    if len(pivots) > most:
        lines.append(f"{'':>14}  ... and {len(pivots) - most} more")
    lines += [
        "",
        f"{summary['pivots']} confirmed pivots ({summary['helping']} help, "
        f"{summary['pivots'] - summary['helping']} harm) among {summary['tested']} tested tokens "
        f"of {summary['kept']} questions (of {summary['questions']} tried); "
        f"{summary['pairs']} preference pairs",
        f"{summary['tokens']:,} tokens in {summary['samples']:,} rollouts"
        + (f", {summary['tokens_per_pair']:,} per pair" if summary["pairs"] else ""),
    ]
    if summary.get("repeated") or summary.get("too_long"):  # older searches do not say
        lines.append(
            f"left out: {summary['repeated']} problems that repeat another, "
            f"{summary['too_long']} that leave no room in the model's context"
        )
    return "\n".join(lines)


def _row(p: Mapping[str, Any]) -> str:
    token = p["token_text"].replace("\n", "↵")
    change = f"{p['delta']:+.2f} [{p['lower']:+.2f}, {p['upper']:+.2f}]"
    moved = f"{_share(p['p_before']):.2f} → {_share(p['p_after']):.2f}"
    return f"{token[:14]!r:>14}  {moved:>16}  {change:<24} {p['kind']}"


def _share(p: float) -> float:
    return min(1.0, max(0.0, p))
