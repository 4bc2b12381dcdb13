"""`phikit synth run`: a corpus by itself, in a folder that keeps what was paid for.

DIR/replies.jsonl and the other files of `synth.declared`; DIR/stage.json, written last. The same
command goes on after a kill. Another command in the same folder (more samples, a larger budget,
other types) writes the corpus anew and pays only for what was not asked before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phikit import ledger, progress
from phikit.errors import PhikitError
from phikit.files import canonical_json, explain_os_errors, write_json
from phikit.memory import PeakMemory
from phikit.recipes.settings import from_settings
from phikit.stage import Context
from phikit.synth.stage_declared import DeclaredConfig, run_declared
from phikit.verify.own import marks

VERB = "synth.declared"


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        types: names of dataset types; all that the seeds allow when empty.
        seeds: folders or files of documents.
        teacher: an endpoint's address, or a model on this machine.
        model: the teacher's name at the address.
        items: a stage's folder of evaluation items that must not be asked.
        verifiers: of the user's own, as FILE.py:NAME, that the types name.
    """

    types: Sequence[str]
    seeds: Sequence[Path]
    teacher: str
    model: str = ""
    count: int = 100
    folder: Path | None = None
    items: Path | None = None
    settings: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 2
    verifiers: tuple[str, ...] = ()


def config_of(job: Job) -> DeclaredConfig:
    """The stage's settings.

    Raises:
        PhikitError: a setting is wrong, or an endpoint's model is not named.
    """
    settings = [f"count={job.count}"]
    if not job.teacher:
        raise PhikitError("there is no teacher", "give --teacher URL, or a model on this machine")
    if "://" in job.teacher:
        if not job.model:
            raise PhikitError(
                f"the teacher at {job.teacher} needs the model's name", "give it with --name NAME"
            )
        settings += [f"teacher.url={job.teacher.rstrip('/')}", f"teacher.model={job.model}"]
    else:
        settings.append(f"local={job.teacher}")
    if job.folder is not None:
        settings.append(f"folder={job.folder}")
    if job.verifiers:
        settings.append(f"verifiers={canonical_json(job.verifiers)}")
    config = from_settings(DeclaredConfig, (*settings, *job.settings), VERB)
    if not job.types:
        return config
    from phikit.synth.declared_types import find_type, read_types

    known = read_types(job.folder)
    shares = {name: find_type(name, known).share for name in job.types}
    return config.model_copy(update={"types": shares})


def run(job: Job, out: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Writes the corpus, or what is left of it; returns its stage.json.

    Raises:
        PhikitError: a file or a setting is wrong, or another process works in `out`.
    """
    config = config_of(job)
    inputs = {f"documents.{i}": path for i, path in enumerate(job.seeds)}
    if job.items is not None:
        inputs["items"] = job.items
    what = {
        "verb": VERB,
        "config": config.model_dump(mode="json"),
        "inputs": {role: str(path) for role, path in inputs.items()},
        "seed": job.seed,
    }
    if config.verifiers:
        what["verifier_code"] = marks(config.verifiers)
    with explain_os_errors(out, "making the folder"):
        out.mkdir(parents=True, exist_ok=True)
        strangers = {p.name for p in out.iterdir()} - {".lock"}
    if strangers and not (out / "started.json").exists():
        raise PhikitError(
            f"{out}: not empty, and no corpus was begun there", "choose another folder with --out"
        )
    with ledger.locked(out):
        before = ledger.done(out)
        if before is not None and _same(before, what) and _complete(before["summary"]):
            say(f"{out}: this corpus is done; --out names another folder for a new one")
            return before
        (out / "stage.json").unlink(missing_ok=True)
        write_json(out / "started.json", what)
        return _write(job, config, inputs, out, what)


def _same(record: Mapping[str, Any], what: Mapping[str, Any]) -> bool:
    return all(record.get(key) == value for key, value in what.items())


def _complete(summary: Mapping[str, Any]) -> bool:
    return not summary.get("failed") and not summary.get("unsent")


def _write(
    job: Job, config: DeclaredConfig, inputs: Mapping[str, Path], out: Path, what: dict[str, Any]
) -> dict[str, Any]:
    if config.local:
        import torch

        torch.set_num_threads(job.threads)
    display = progress.for_terminal()
    begun, peak = time.monotonic(), PeakMemory()
    with peak, display.stage(VERB) as shown, explain_os_errors(out, "writing"):
        context = Context(out, job.seed, job.threads, shown)
        summary = run_declared(context, config, inputs)
        context.close()
    record = {
        **what,
        "summary": summary,
        "cost": {
            **asdict(context.cost),
            "seconds": round(time.monotonic() - begun, 3),
            "peak_bytes": peak.bytes,
        },
        "artefacts": ledger.artefacts(out),
    }
    record["artefacts"].pop(".lock", None)
    write_json(out / "stage.json", record)
    return record
