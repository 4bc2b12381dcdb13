"""Recipes: what is accepted, and that a mistake is named with its line and the way out."""

import re
from pathlib import Path

import pytest
from toy_stages import REGISTRY

from phikit import single
from phikit.errors import PhikitError
from phikit.recipes import source
from phikit.recipes.load import built_in, load
from phikit.recipes.registry import MODULES, Registry
from phikit.recipes.schema import as_yaml


def explain(path: Path, *settings: str) -> str:
    with pytest.raises(PhikitError) as caught:
        load(str(path), settings, registry=REGISTRY)
    return str(caught.value)


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_recipe_is_read_with_its_defaults(recipe_file: Path) -> None:
    recipe = load(str(recipe_file), registry=REGISTRY)
    assert [s.name for s in recipe.stages] == ["one", "two", "sum", "twice"]
    assert recipe.stages[0].config.model_dump() == {
        "steps": 4,
        "start": 0,
        "file": "",
        "pause": 0.0,
    }
    assert recipe.stages[3].inputs == {"first": ("sum",), "more": ("sum", "two")}


def test_a_resolved_recipe_reads_back_as_itself(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load(str(recipe_file), ["one.steps=7"], registry=REGISTRY)
    again = tmp_path / "resolved.yaml"
    again.write_text(as_yaml(recipe))
    assert load(str(again), registry=REGISTRY) == recipe


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps: 4", "stepz: 4",
         "toy.yaml:9: unknown key 'stepz' in stage 'one' (toy.count); did you mean 'steps'?"),
        ("steps: 4", "steps: many", "toy.yaml:9: 'steps' in stage 'one' (toy.count) is 'many': "),
        ("steps: 4", "steps: 0", "toy.yaml:9: 'steps' in stage 'one' (toy.count) is 0: "),
        ("plus: 1", "inner: {facter: 2}",
         "toy.yaml:17: unknown key 'facter' in stage 'sum' (toy.add); did you mean 'factor'?"),
        ("verb: toy.count", "verb: toy.cuont", "toy.yaml:7: no verb is named 'toy.cuont'"),
        ("verb: toy.count", "verb: tyo.count", "did you mean 'toy'?"),
        ("first: one", "frist: one",
         "toy.yaml:15: unknown input 'frist' of stage 'sum' (toy.add); did you mean 'first'?"),
        ("first: one", "first: oen", "there is no such stage; did you mean 'one'?"),
        ("first: one", "first: twice", "toy.yaml:15: stage 'sum' (toy.add) takes its input "
         "'first' from 'twice', which comes later"),
        ("first: one", "first: sum", "takes its input 'first' from itself"),
        ("first: one", "first: [one, two]", "it takes one stage"),
        ("first: one, ", "", "toy.yaml:13: the input 'first' of stage 'sum' (toy.add) is missing"),
        ("name: two", "name: one", "toy.yaml:10: a second stage named 'one'"),
        ("threads: 1", "thread: 1", "toy.yaml:4: unknown key 'thread'; did you mean 'threads'?"),
        ("threads: 1", "threads: 0", "toy.yaml:4: 'threads' is 0: "),
        ("threads: 1", "seed: 1", "toy.yaml:4: the key 'seed' occurs twice"),
        ("    verb: toy.count\n", "", "toy.yaml:6: the key 'stages.0.verb' is missing"),
        ("stages:", "stages: {", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(
    recipe_file: Path, old: str, new: str, expected: str
) -> None:
    assert expected in explain(changed(recipe_file, old, new))


def test_every_mistake_of_a_stage_is_named_at_once(recipe_file: Path) -> None:
    text = explain(changed(recipe_file, "steps: 4", "stepz: 4\n      start: x"))
    assert "toy.yaml:9: unknown key 'stepz'" in text
    assert "toy.yaml:10: 'start'" in text


def test_settings_by_stage_verb_and_package(recipe_file: Path) -> None:
    def steps(*settings: str) -> list[int]:
        recipe = load(str(recipe_file), settings, registry=REGISTRY)
        return [s.config.steps for s in recipe.stages[:2]]  # type: ignore[attr-defined]

    assert steps("two.steps=8") == [4, 8]
    assert steps("toy.count.steps=8") == [8, 8]
    assert steps("toy.steps=8") == [8, 8]
    assert steps("toy.steps=8", "one.steps=2") == [2, 8]
    assert load(str(recipe_file), ["seed=5"], registry=REGISTRY).seed == 5
    assert load(str(recipe_file), seed=6, registry=REGISTRY).seed == 6
    deep = load(str(recipe_file), ["sum.inner.factor=2e-1"], registry=REGISTRY)
    assert deep.stages[2].config.inner.factor == 0.2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("one.stepz=3", "--set one.stepz=3: unknown key 'stepz' in stage 'one' (toy.count); "
         "did you mean 'steps'?"),
        ("one.steps=lots", "--set one.steps=lots: 'steps' in stage 'one' (toy.count) is 'lots'"),
        ("oen.steps=3", "did you mean 'one'?"),
        ("toy.stepz=3", "no toy stage of this recipe has the key 'stepz'; did you mean 'steps'?"),
        ("sed=3", "unknown key 'sed'; did you mean 'seed'?"),
        ("one.steps", "no '=' in it"),
        ("one.steps.more=1", "'steps' is 4, which has no keys inside it"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(recipe_file: Path, setting: str, expected: str) -> None:
    assert expected in explain(recipe_file, setting)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(PhikitError, match="did you mean 'nano'"):
        load("nanno")


def test_numbers_are_those_of_yaml_1_2() -> None:
    text = "a: 3e-4\nb: no\nc: 1_000\nd: 012\ne: true\nf: ~\ng: 1:30\nh: .5\ni:\nj: -1.5E+3\n"
    values, places = source.read(text, "x.yaml")
    assert values == {"a": 3e-4, "b": "no", "c": 1000, "d": 12, "e": True, "f": None,
                      "g": "1:30", "h": 0.5, "i": None, "j": -1500.0}  # fmt: skip
    assert places.of(("c",)) == "x.yaml:3"


@pytest.mark.parametrize("name", sorted(built_in()))
def test_every_built_in_recipe_is_valid(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert recipe.about


@pytest.mark.parametrize("package", MODULES)
def test_every_stage_and_every_setting_says_what_it_is(package: str) -> None:
    """What `phikit PACKAGE ACTION` prints; settings are explained there or in a docstring."""
    for verb, stage in Registry().package(package).items():
        assert verb.startswith(f"{package}.") and stage.help
        page = single.describe(package, package, verb.partition(".")[2])
        settings = page.partition("Settings:\n")[2].splitlines()
        for line, below in zip(settings, [*settings[1:], ""], strict=True):
            is_setting = line.startswith("  ") and not line.startswith("   ")
            assert not is_setting or below.startswith(" " * 6), f"{verb}: {line.strip()}"
        assert "Annotated" not in page and "0x" not in page, "types are written for a reader"


def test_the_settings_of_an_optional_part_are_explained_too() -> None:
    page = single.describe("train", "train", "sft")
    for name, kind, default in (("lora", "settings", "null"), ("lora.rank", "int", "16"),
                                ("steps", "int | null", "null"), ("packing", "bool", "true"),
                                ("lora.targets", "list of str", "[qkv_proj, ")):  # fmt: skip
        assert re.search(rf"^  {name} +{re.escape(kind)} +{re.escape(default)}", page, re.MULTILINE)
