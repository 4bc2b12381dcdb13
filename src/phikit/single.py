"""One stage by itself: `phikit train sft --input model=DIR --set lr=1e-4 --out DIR`.

A training stage may have several processes: `torchrun --nproc-per-node 2 -m phikit train ...`.
"""

from __future__ import annotations

import inspect
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from phikit import ledger, progress
from phikit.errors import PhikitError, did_you_mean
from phikit.files import Journal, explain_os_errors, read_json, write_json
from phikit.memory import PeakMemory, keep_freed_memory
from phikit.recipes.registry import Registry
from phikit.recipes.settings import from_settings
from phikit.stage import Config, Context, Stage
from phikit.verify.own import marks

_OF_MODELS = ("train", "evals")  # packages whose stages run or train a model
_FINGERPRINTED = ("files", "verifiers")  # what of a run is compared by fingerprints


def list_actions(package: str, command: str) -> str:
    """The stages of a package, a line each, as `phikit COMMAND --help` shows them."""
    lines = ["Stages:"]
    actions = {verb.partition(".")[2]: s for verb, s in Registry().package(package).items()}
    width = max(map(len, actions))
    lines += [f"  phikit {command} {name:<{width}}  {s.help}" for name, s in actions.items()]
    lines += ["", f"`phikit {command} STAGE` shows its inputs and settings."]
    return "\n".join(lines)


def describe(package: str, command: str, action: str) -> str:
    """How to run a stage: its inputs, and each setting with its type, default and meaning."""
    stage = _stage(Registry(), package, action)
    roles = " ".join(f"--input {role.rstrip('?*')}=DIR" for role in stage.inputs)
    lines = [f"phikit {command} {action}: {stage.help}", "",
             f"  phikit {command} {action} {roles} --set KEY=VALUE --out DIR", ""]  # fmt: skip
    notes = {"?": "may be left out", "*": "any number of folders"}
    for role in stage.inputs:
        lines.append(f"  input {role.rstrip('?*'):<12} {notes.get(role[-1], 'needed')}")
    lines += ["", "Settings:", *_settings(stage.config)]
    return "\n".join(lines)


def run(
    package: str,
    action: str,
    inputs: Sequence[str],
    settings: Sequence[str],
    out: Path,
    seed: int,
    threads: int,
    registry: Registry | None = None,
    verifiers: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs one stage into `out`, or goes on where the same run stopped; returns its summary.

    Args:
        verifiers: of the user's own, as FILE.py:NAME, that the stage's problems name.

    Raises:
        PhikitError: an input or a setting is wrong, `out` holds something, or the stage failed.
    """
    stage = _stage(registry or Registry(), package, action)
    folders = _folders(stage, inputs)
    config: Config = from_settings(stage.config, settings, stage.verb)
    what = {
        "verb": stage.verb,
        "config": config.model_dump(mode="json"),
        "inputs": {role: str(folder) for role, folder in folders.items()},
        "seed": seed,
    }
    if marked := _marks(stage, verifiers):
        what["verifiers"] = marked
    if stage.resumable and (read := stage.fingerprints(config)):
        what["files"] = read
    if package in _OF_MODELS:
        keep_freed_memory()
    if package != "train":
        _claim(out, what, stage)
        return _run_here(stage, config, folders, out, what, threads)
    import torch

    from phikit.train import parallel

    torch.set_num_threads(threads)
    if not parallel.launched():
        _claim(out, what, stage)
        return _run_here(stage, config, folders, out, what, threads)
    parallel.join()
    try:
        with parallel.first_one_first():
            if parallel.rank() == 0:
                _claim(out, what, stage)
        if parallel.rank() == 0:
            return _run_here(stage, config, folders, out, what, threads)
        return _help_run(stage, config, folders, out, seed, threads)
    finally:
        parallel.leave()


def _marks(stage: Stage[Any], verifiers: Sequence[str]) -> dict[str, str]:
    """Loads the verifiers; each with what changes when its code does."""
    if verifiers and stage.verb.partition(".")[0] in ("data", "export"):
        raise PhikitError(f"--verifier: {stage.verb} judges no answers", "leave it out")
    return marks(verifiers)


def _run_here(
    stage: Stage[Any],
    config: Config,
    folders: dict[str, Path],
    out: Path,
    what: dict[str, Any],
    threads: int,
) -> dict[str, Any]:
    """Runs a stage and writes what it was and took into stage.json."""
    display = progress.for_terminal()
    peak = PeakMemory()
    with peak, display.stage(stage.verb) as shown, explain_os_errors(out, "writing"):
        context = Context(out, what["seed"], threads, shown)
        summary = stage.run(context, config, folders)
        context.close()
    write_json(
        out / "stage.json",
        {
            **what,
            "threads": threads,
            "summary": summary,
            "cost": {**asdict(context.cost), "peak_bytes": peak.bytes},
            "artefacts": ledger.artefacts(out),
        },
    )
    display.say(f"✓ {stage.verb}  {progress.figures(summary, display.width - 20)}")
    return summary


def _help_run(
    stage: Stage[Any], config: Config, folders: dict[str, Path], out: Path, seed: int, threads: int
) -> dict[str, Any]:
    """Runs a stage as one of several processes; the first one's metrics are the run's."""
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(out, seed, threads, _metrics=Journal(Path(scratch) / "metrics.jsonl"))
        summary = stage.run(context, config, folders)
        context.close()
    return summary


def _claim(out: Path, what: dict[str, Any], stage: Stage[Any]) -> None:
    """Takes a folder for a run: an empty one, or one in which the same run was interrupted."""
    with explain_os_errors(out, "making the folder"):
        out.mkdir(parents=True, exist_ok=True)
        names = {p.name for p in out.iterdir()}
    if names:
        interrupted = "started.json" in names and "stage.json" not in names
        if interrupted and stage.resumable:
            if (begun := read_json(out / "started.json")) == what:
                return
            raise PhikitError(
                f"{out}: another run was begun here: {_difference(begun, what)}",
                "give the same command to go on with it, or choose a new folder with --out",
            )
        raise PhikitError(f"{out}: not empty", "choose a new folder with --out")
    write_json(out / "started.json", what)


def _difference(begun: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> str:
    """The first thing in which two runs differ, by its dotted name."""
    for key in [*now, *(key for key in begun if key not in now)]:
        was, wanted = begun.get(key), now.get(key)
        if was == wanted:
            continue
        name = f"{inside}.{key}".removeprefix(".").removeprefix("config.")
        if isinstance(was, Mapping) and isinstance(wanted, Mapping):
            return _difference(was, wanted, name)
        if inside in _FINGERPRINTED and was and wanted:
            return f"{key} changed"
        return f"{name} was {was!r}, now {wanted!r}"
    raise AssertionError("they are the same")


def _stage(registry: Registry, package: str, action: str) -> Stage[Any]:
    stages = {verb.partition(".")[2]: s for verb, s in registry.package(package).items()}
    if action not in stages:
        raise PhikitError(f"{package} has no stage {action!r}", did_you_mean(action, stages))
    return stages[action]


def _folders(stage: Stage[Any], inputs: Sequence[str]) -> dict[str, Path]:
    """ROLE=DIR arguments as the stage takes them: "samples" given twice is samples.0, samples.1."""
    declared = {role.rstrip("?*"): role for role in stage.inputs}
    folders: dict[str, Path] = {}
    for given in inputs:
        role, equals, folder = given.partition("=")
        if not equals:
            raise PhikitError(f"--input {given}: no '=' in it", "write --input model=DIR")
        if role not in declared:
            hint = did_you_mean(role, declared) if declared else "it takes none"
            raise PhikitError(f"--input {given}: {stage.verb} has no input {role!r}", hint)
        if not Path(folder).is_dir():
            raise PhikitError(f"--input {given}: there is no such folder")
        if declared[role].endswith("*"):
            role = f"{role}.{sum(name.startswith(role + '.') for name in folders)}"
        elif role in folders:
            raise PhikitError(f"--input {given}: {role!r} is given twice")
        folders[role] = Path(folder)
    for role, written in declared.items():
        if role not in folders and not written.endswith(("?", "*")):
            raise PhikitError(f"{stage.verb} needs --input {role}=DIR")
    return folders


def _settings(config: type[Config]) -> list[str]:
    """One line per setting with its type and default, and what it means below."""
    rows = list(_rows(config, ""))
    names, types = (max((len(row[i]) for row in rows), default=0) for i in (0, 1))
    lines: list[str] = []
    for name, kind, default, meaning in rows:
        lines.append(f"  {name:<{names}}  {kind:<{min(types, 24)}}  {default}")
        lines += textwrap.wrap(meaning, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _rows(config: type[Config], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each setting, those of nested models by dotted names."""
    explained = _explained(config)
    for name, field in config.model_fields.items():
        kind: Any = field.annotation
        nested = [part for part in (kind, *get_args(kind)) if _is_config(part)]
        if kind not in nested:
            default = (
                "needed"
                if field.is_required()
                else _value(field.get_default(call_default_factory=True, validated_data={}))
            )
            meaning = field.description or explained.get(name, "")
            yield prefix + name, "settings" if nested else _type_name(kind), default, meaning
        for part in nested:
            yield from _rows(part, f"{prefix}{name}.")


def _value(default: Any) -> str:
    """A default as `--set` takes it."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, tuple | list):
        return f"[{', '.join(_value(part) for part in default)}]"
    # plain words need no quotes in YAML, sentences do
    quoted = isinstance(default, str) and not re.fullmatch(r"[\w./+-]+", default)
    return repr(default) if quoted else str(default)


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Config)


def _explained(config: type[Config]) -> dict[str, str]:
    """What the "Attributes:" sections of a configuration's docstrings say, by setting."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        entry = r"^ {4}(\w+(?:, \w+)*): (.+(?:\n {5,}.+)*)"
        for names, meaning in re.findall(entry, section, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def _type_name(kind: Any) -> str:
    """A type as a reader of the help takes it: `bf16 | f32`, `dict of str: float`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:  # its validators say more than a reader wants, and an address
        return _type_name(inner[0])
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    names = [_type_name(part) for part in inner if part is not Ellipsis]
    if origin is dict:
        return f"dict of {names[0]}: {names[1]}"
    if origin in (list, tuple):
        alike = origin is list or Ellipsis in inner
        return f"list of {names[0]}" if alike else f"[{', '.join(names)}]"
    if names:
        return " | ".join(names)
    return "null" if kind is NoneType else getattr(kind, "__name__", str(kind))
