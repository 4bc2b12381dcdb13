"""What a recipe is, as written and as checked, and how a wrong one is explained."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from phikit.errors import PhikitError, did_you_mean
from phikit.recipes.source import Path, Places
from phikit.stage import Config, Stage

_NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class RawStage(Config):
    """One entry of a recipe's `stages`, as it is written."""

    name: Annotated[str, Field(pattern=_NAME)]
    verb: str
    inputs: dict[str, Annotated[list[str], BeforeValidator(_as_list)]] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)


class Cluster(Config):
    """What a recipe is meant to run on, so that --dry-run can say what it takes there.

    Attributes:
        utilisation: the part of the GPUs' peak that training reaches.
        generation: the part that drawing tokens reaches.
        price: of one GPU for one hour.
    """

    gpu: Literal["a100", "h100", "h200", "b200"] = "h100"
    gpus: Annotated[int, Field(ge=1)]
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.4
    generation: Annotated[float, Field(gt=0, le=1)] = 0.05
    price: Annotated[float, Field(gt=0)] = 2.5


class RawRecipe(Config):
    """A recipe file, as it is written."""

    name: Annotated[str, Field(pattern=_NAME)]
    about: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=1)] = 2
    cluster: Cluster | None = None
    stages: Annotated[list[RawStage], Field(min_length=1)]


@dataclass(frozen=True)
class StageSpec:
    """One stage of a checked recipe. `inputs`: role → names of earlier stages, in order."""

    name: str
    stage: Stage[Any]
    config: Config
    inputs: Mapping[str, tuple[str, ...]]

    @property
    def verb(self) -> str:
        return self.stage.verb


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: every setting is valid, and every input is made by an earlier stage."""

    name: str
    about: str
    seed: int
    threads: int
    stages: tuple[StageSpec, ...]
    cluster: Cluster | None = None

    def resolved(self) -> dict[str, Any]:
        """The recipe as a file would state it with every default written out."""
        return {
            "name": self.name,
            "about": self.about,
            "seed": self.seed,
            "threads": self.threads,
            **({"cluster": self.cluster.model_dump()} if self.cluster else {}),
            "stages": [
                {
                    "name": spec.name,
                    "verb": spec.verb,
                    "inputs": {
                        role: list(names) if role + "*" in spec.stage.inputs else names[0]
                        for role, names in spec.inputs.items()
                    },
                    "config": spec.config.model_dump(mode="json"),
                }
                for spec in self.stages
            ],
        }


def as_yaml(recipe: Recipe) -> str:
    """The resolved recipe as a file that `load` reads back as the same recipe."""
    return yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True, width=100)


M = TypeVar("M", bound=BaseModel)


def check(model: type[M], raw: Any, places: Places, path: Path = (), subject: str = "") -> M:
    """Validates what stands at `path` of a recipe.

    Raises:
        PhikitError: names every mistake with its place, the wrong value, and the nearest right key.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as e:
        lines = [_explain(model, error, places, path, subject) for error in e.errors()]
        raise PhikitError("\n".join(lines)) from e
    except PhikitError as e:
        raise PhikitError(f"{places.of(path)}: {subject}: {e.message}", e.hint) from e


def _explain(
    model: type[BaseModel], error: ErrorDetails, places: Places, path: Path, subject: str
) -> str:
    loc = error["loc"]
    place = places.of((*path, *loc))
    inside = f" in {subject}" if subject else ""
    dotted = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        hint = f"; {did_you_mean(str(loc[-1]), known)}" if known else ""
        return f"{place}: unknown key {str(loc[-1])!r}{inside}{hint}"
    if error["type"] == "missing":
        return f"{place}: the key {dotted!r} is missing{inside}"
    message = error["msg"].removeprefix("Value error, ")
    if not loc:
        return f"{place}: {subject or 'the recipe'}: {message}"
    return f"{place}: {dotted!r}{inside} is {error['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The keys that the model at `loc` inside `model` knows."""
    kind: Any = model
    for part in loc:
        if isinstance(part, str) and _is_model(kind) and part in kind.model_fields:
            kind = kind.model_fields[part].annotation
        else:  # an index, or a key of a mapping: whatever model its values have
            pass
        kind = _model_in(kind) or kind
    return list(kind.model_fields) if _is_model(kind) else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _model_in(kind: Any) -> Any:
    """The first pydantic model inside list[...], dict[...], Annotated[...], or a union."""
    if _is_model(kind):
        return kind
    for argument in typing.get_args(kind):
        if found := _model_in(argument):
            return found
    return None
