"""Reads a recipe, applies what the command line sets, and checks all of it before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError, did_you_mean
from phikit.files import explain_os_errors
from phikit.recipes import source
from phikit.recipes.registry import Registry
from phikit.recipes.schema import RawRecipe, RawStage, Recipe, StageSpec, check
from phikit.recipes.source import Places
from phikit.stage import Stage


def built_in() -> dict[str, Path]:
    """The recipes that come with phikit, by name."""
    folder = Path(str(resources.files("phikit.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> tuple[Path, str]:
    """The file of a recipe given by name or path, and what to call it in errors.

    Raises:
        PhikitError: there is none; names the nearest built-in one.
    """
    known = built_in()
    if name in known:
        return known[name], f"recipes/{name}.yaml"
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").exists():
        path = path / "recipe.yaml"
    if path.is_file():
        return path, str(path)
    raise PhikitError(
        f"no recipe is named {name!r}, and there is no such file",
        did_you_mean(name, known) + "; `phikit recipes list` describes the built-in ones",
    )


def load(
    name: str,
    settings: Sequence[str] = (),
    seed: int | None = None,
    registry: Registry | None = None,
) -> Recipe:
    """Reads a recipe by name or path.

    Args:
        settings: "WHERE.KEY=VALUE" each. WHERE is a stage's name, or a verb or its first word,
            which mean every stage of that verb that has the key. `seed` and `threads` stand alone.
        seed: in place of the recipe's own.

    Raises:
        PhikitError: anything in it is wrong; names line, value and the nearest right word.
    """
    path, shown = find(name)
    with explain_os_errors(path, "reading"):
        text = path.read_text()
    raw, places = source.read(text, shown)
    if not isinstance(raw, dict):
        raise PhikitError(f"{shown}:1: a recipe is a mapping with the keys name and stages")
    check(RawRecipe, raw, places)
    registry = registry or Registry()
    stages = [_stage(registry, entry, places, i) for i, entry in enumerate(raw["stages"])]
    _check_names(raw["stages"], places)
    for setting in settings:
        _apply(setting, raw, places, stages)
    if seed is not None:
        raw["seed"] = seed
        places.put(("seed",), "--seed")
    checked = check(RawRecipe, raw, places)
    specs = tuple(
        _spec(entry, stages[i], i, checked.stages, places) for i, entry in enumerate(checked.stages)
    )
    return Recipe(
        checked.name, checked.about, checked.seed, checked.threads, specs, checked.cluster
    )


def _stage(registry: Registry, entry: dict[str, Any], places: Places, i: int) -> Stage[Any]:
    try:
        return registry.get(entry["verb"])
    except PhikitError as e:
        place = places.of(("stages", i, "verb"))
        raise PhikitError(f"{place}: {e.message} (stage {entry['name']!r})", e.hint) from e


def _check_names(entries: Sequence[dict[str, Any]], places: Places) -> None:
    first: dict[str, int] = {}
    for i, entry in enumerate(entries):
        if (j := first.setdefault(entry["name"], i)) != i:
            raise PhikitError(
                f"{places.of(('stages', i, 'name'))}: a second stage named {entry['name']!r}",
                f"the first is at {places.of(('stages', j, 'name'))}; rename one of them",
            )


# --- Inputs and settings of one stage ------------------------------------------------------------


def _spec(
    entry: RawStage, stage: Stage[Any], i: int, entries: Sequence[RawStage], places: Places
) -> StageSpec:
    subject = f"stage {entry.name!r} ({stage.verb})"
    _check_inputs(entry, stage, i, entries, places, subject)
    config = check(stage.config, entry.config, places, ("stages", i, "config"), subject)
    order = [role.rstrip("?*") for role in stage.inputs]
    inputs = {role: tuple(entry.inputs[role]) for role in order if role in entry.inputs}
    return StageSpec(entry.name, stage, config, inputs)


def _check_inputs(
    entry: RawStage,
    stage: Stage[Any],
    i: int,
    entries: Sequence[RawStage],
    places: Places,
    subject: str,
) -> None:
    declared = {role.rstrip("?*"): role for role in stage.inputs}
    earlier = [e.name for e in entries[:i]]
    later = [e.name for e in entries[i:]]
    for role, names in entry.inputs.items():
        place = places.of(("stages", i, "inputs", role))
        if role not in declared:
            hint = did_you_mean(role, declared) if declared else "it takes none"
            raise PhikitError(f"{place}: unknown input {role!r} of {subject}; {hint}")
        if len(names) != 1 and not declared[role].endswith("*"):
            raise PhikitError(
                f"{place}: the input {role!r} of {subject} is {names!r}: it takes one stage"
            )
        for name in names:
            if name == entry.name:
                raise PhikitError(f"{place}: {subject} takes its input {role!r} from itself")
            if name in later:
                raise PhikitError(
                    f"{place}: {subject} takes its input {role!r} from {name!r}, which comes later",
                    f"move {name!r} before {entry.name!r}; stages run in the order of the file",
                )
            if name not in earlier:
                hint = did_you_mean(name, earlier) if earlier else "no stage comes before it"
                raise PhikitError(
                    f"{place}: {subject} takes its input {role!r} from {name!r}: "
                    f"there is no such stage; {hint}"
                )
    for role, written in declared.items():
        if role not in entry.inputs and not written.endswith(("?", "*")):
            raise PhikitError(
                f"{places.of(('stages', i))}: the input {role!r} of {subject} is missing"
            )


# --- --set ---------------------------------------------------------------------------------------


def _apply(setting: str, raw: dict[str, Any], places: Places, stages: Sequence[Stage[Any]]) -> None:
    """Writes one --set into the raw recipe, so that it is checked like the rest of it."""
    target, equals, text = setting.partition("=")
    place = f"--set {setting}"
    if not equals:
        raise PhikitError(f"{place}: no '=' in it", "write --set stage.key=value")
    value = source.scalar(text, place)
    top = [key for key in ("name", "about", "seed", "threads") if key in RawRecipe.model_fields]
    if "." not in target:
        if target not in top:
            words = [*top, *_known(raw, stages)]
            raise PhikitError(f"{place}: unknown key {target!r}; {did_you_mean(target, words)}")
        raw[target] = value
        places.put((target,), place)
        return
    chosen, key = _targets(target, raw, stages, place)
    for i in chosen:
        config = raw["stages"][i].setdefault("config", {})
        source.put(config, ("stages", i, "config"), key, value, places, place)


def _targets(
    target: str, raw: dict[str, Any], stages: Sequence[Stage[Any]], place: str
) -> tuple[list[int], list[str]]:
    """The stages that "WHERE.KEY" means, and KEY split at its dots. A stage's name goes first."""
    head, *key = target.split(".")
    named = [i for i, entry in enumerate(raw["stages"]) if entry["name"] == head]
    if named:
        return named, key
    verb = f"{head}.{key[0]}"
    of_verb = [i for i, stage in enumerate(stages) if stage.verb == verb]
    if of_verb and len(key) > 1:
        return of_verb, key[1:]
    of_package = [i for i, stage in enumerate(stages) if stage.verb.partition(".")[0] == head]
    if not of_package:
        raise PhikitError(
            f"{place}: no stage, verb or package of this recipe is named {head!r}; "
            + did_you_mean(head, _known(raw, stages))
        )
    having = [i for i in of_package if key[0] in stages[i].config.model_fields]
    if not having:
        fields = {name for i in of_package for name in stages[i].config.model_fields}
        raise PhikitError(
            f"{place}: no {head} stage of this recipe has the key {key[0]!r}; "
            + did_you_mean(key[0], fields)
        )
    return having, key


def _known(raw: dict[str, Any], stages: Sequence[Stage[Any]]) -> set[str]:
    names = {entry["name"] for entry in raw["stages"]}
    return names | {stage.verb for stage in stages} | {s.verb.partition(".")[0] for s in stages}
