"""Which verbs there are, and which package offers each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from phikit.errors import PhikitError, did_you_mean
from phikit.stage import Stage

#: First word of a verb → the module whose `STAGES` has its actions. Imported only when named.
MODULES: Mapping[str, str] = {
    "data": "phikit.data.stages",
    "synth": "phikit.synth.stages",
    "train": "phikit.train.stages",
    "pivots": "phikit.pivots.stages",
    "evals": "phikit.evals.stages",
    "export": "phikit.export.stages",
}


class Registry:
    """The stages that recipes can name, by verb ("train.sft")."""

    def __init__(self, modules: Mapping[str, str] = MODULES) -> None:
        self.modules = modules
        self._stages: dict[str, dict[str, Stage[Any]]] = {}

    def package(self, name: str) -> dict[str, Stage[Any]]:
        """A package's stages by verb.

        Raises:
            PhikitError: there is no such package; names the nearest.
        """
        if name not in self.modules:
            raise PhikitError(f"no verb begins with {name!r}", did_you_mean(name, self.modules))
        if name not in self._stages:
            module = importlib.import_module(self.modules[name])
            self._stages[name] = {stage.verb: stage for stage in module.STAGES}
        return self._stages[name]

    def get(self, verb: str) -> Stage[Any]:
        """The stage of a verb.

        Raises:
            PhikitError: there is none; names the nearest.
        """
        stages = self.package(verb.partition(".")[0])
        if verb not in stages:
            raise PhikitError(f"no verb is named {verb!r}", did_you_mean(verb, stages))
        return stages[verb]
