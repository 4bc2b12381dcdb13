"""What the evaluations of a run show: accuracies, differences, and whether each stage helped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from phikit.evals.statistics import Difference, Estimate, accuracy, item_means, paired
from phikit.records import Sample, Score
from phikit.reporting.run_dir import Done, Run


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model. `model` is the training stage that made it."""

    stage: Done
    model: Done
    scores: tuple[Score, ...]

    @cached_property
    def sampled(self) -> dict[str, float]:
        """Each item's mean score over its sampled answers."""
        return item_means(self.scores)

    @cached_property
    def greedy(self) -> dict[str, float]:
        """Each item's score of the greedy answer, where there is one."""
        return item_means(self.scores, greedy=True)

    @property
    def means(self) -> dict[str, float]:
        """The shares that comparisons are made on: sampled, or greedy where nothing was sampled."""
        return self.sampled or self.greedy

    @cached_property
    def accuracy(self) -> Estimate:
        """The mean over items, with its interval."""
        return accuracy(list(self.means.values()), self.samples)

    @cached_property
    def greedy_accuracy(self) -> Estimate | None:
        """The greedy answers' mean, where sampled ones are the main score."""
        return accuracy(list(self.greedy.values())) if self.greedy and self.sampled else None

    @property
    def samples(self) -> int:
        """Sampled answers to each item; 1 when all are greedy."""
        count = sum(s.sample >= 0 for s in self.scores)
        return max(1, count // max(1, len(self.sampled)))

    @cached_property
    def by_kind(self) -> dict[str, Estimate]:
        """The accuracy on each kind of item."""
        kinds = {s.item: s.task for s in self.scores}
        return {
            kind: accuracy([m for i, m in self.means.items() if kinds[i] == kind], self.samples)
            for kind in sorted(set(kinds.values()))
        }

    def answer(self, item: str) -> Score | None:
        """The answer to show for an item: the greedy one, or the first."""
        mine = [s for s in self.scores if s.item == item]
        return min(mine, key=lambda s: s.sample) if mine else None


@dataclass(frozen=True)
class Comparison:
    """`after` against `before` on the same items. `difference` is None where items differ."""

    label: str
    before: str
    after: str
    difference: Difference | None


@dataclass(frozen=True)
class Changes:
    """How single problems went, before and after, and a few of them to read."""

    before: str
    after: str
    counts: Mapping[str, int]
    examples: tuple[Mapping[str, Any], ...]


class Evaluations:
    """All accuracy evaluations of a run.

    Attributes:
        chain: those of the models that the final one went through, in order.
        others: those of ablations.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        found: dict[str, Evaluation] = {}
        for stage in run.of("evals.run"):
            model = run.by_name.get(stage.given("model"))
            if model is not None:
                scores = tuple(stage.records("scores.parquet", Score))
                if scores:
                    found[model.name] = Evaluation(stage, model, scores)
        self.by_model = found
        names = [stage.name for stage in run.chain]
        self.chain = [found[name] for name in names if name in found]
        self.others = [e for name, e in found.items() if name not in names]

    @property
    def sft(self) -> Evaluation | None:
        """The first evaluation of the chain that is of a fine-tuned model."""
        return next((e for e in self.chain if e.model.verb == "train.sft"), None)

    @property
    def final(self) -> Evaluation | None:
        """The evaluation of the run's last model."""
        return self.chain[-1] if self.chain else None

    @property
    def headline(self) -> Comparison | None:
        """The final model against the published one that the run began with; in a run that made
        its own, against the SFT model, or against the first evaluated one."""
        start = self.sft or (self.chain[0] if self.chain else None)
        if self.chain and self.chain[0].model.verb == "train.start":
            start = self.chain[0]
        if start is None or self.final is None or start is self.final:
            return None
        return compare("final against " + start.model.name, start, self.final)

    def steps(self) -> list[Comparison]:
        """Each evaluated stage of the chain against the one before it."""
        pairs = zip(self.chain, self.chain[1:], strict=False)
        return [compare(after.model.name, before, after) for before, after in pairs]

    def against_sft(self) -> list[Comparison]:
        """Each later stage of the chain against the SFT model."""
        if self.sft is None:
            return []
        later = self.chain[self.chain.index(self.sft) + 1 :]
        return [compare(e.model.name, self.sft, e) for e in later]

    def ablations(self) -> list[Comparison]:
        """What single stages are worth.

        DPO on pivotal tokens is always held against its own starting point ("none"). A training
        stage beside the chain is held against the stage of the chain that does the same (same verb,
        inputs of the same verbs) after a longer history, or else against the model it forked from.
        """
        found: list[Comparison | None] = []
        for model in self.run.chain:
            before = self.by_model.get(model.given("model"))
            after = self.by_model.get(model.name)
            if before and after and "pivots.search" in self._sources(model):
                label = f"DPO on pivotal tokens ({model.name}) against none"
                found.append(compare(label, before, after))
        for other in self.others:
            found.append(self._against_chain(other))
        return [c for c in found if c is not None]

    def _against_chain(self, other: Evaluation) -> Comparison | None:
        history = {stage.name for stage in self.run.ancestry(other.model.name)}
        # the first stage of the chain that does what this one does, later than the fork
        after_fork = [s for s in self.run.chain if s.name not in history]
        for twin in after_fork:
            same = twin.verb == other.model.verb
            same = same and self._sources(twin) == self._sources(other.model)
            if same and twin.name in self.by_model:
                earlier = {s.name for s in self.run.ancestry(twin.name)} - {twin.name}
                extra = [s.name for s in self.run.chain if s.name in earlier - history]
                label = f"{twin.name} with {' and '.join(extra)} against without"
                label = label if extra else f"{twin.name} against {other.model.name}"
                return compare(label, other, self.by_model[twin.name])
        start = self.by_model.get(other.model.given("model"))
        return compare(f"{other.model.name} (beside the chain)", start, other) if start else None

    def _sources(self, stage: Done) -> list[str]:
        """The verbs of what a training stage was given besides its model."""
        names = [n for role, given in stage.inputs.items() if role != "model" for n in given]
        return sorted(self.run.by_name[n].verb for n in names if n in self.run.by_name)

    def items(self) -> dict[str, Sample]:
        """Every evaluation item by id."""
        found: dict[str, Sample] = {}
        for e in self.by_model.values():
            stage = self.run.by_name.get(e.stage.given("items"))
            if stage is not None and not found:
                found.update((item.id, item) for item in stage.records("items.parquet", Sample))
        return found

    def changes(self, most: int = 2) -> Changes | None:
        """Problems that became right or wrong between SFT and the end, the first of each."""
        start = self.sft or (self.chain[0] if self.chain else None)
        if start is None or self.final is None or start is self.final:
            return None
        items = self.items()
        groups: dict[str, list[str]] = {
            name: [] for name in ("became right", "became wrong", "stayed wrong", "stayed right")
        }
        for item in sorted(start.means.keys() & self.final.means.keys() & items.keys()):
            old, new = start.answer(item), self.final.answer(item)
            assert old is not None and new is not None  # both have a mean for the item
            change = "stayed" if old.verdict.passed == new.verdict.passed else "became"
            groups[f"{change} {'right' if new.verdict.passed else 'wrong'}"].append(item)
        shown = [(name, i) for name, ids in groups.items() for i in _spread(ids, items, most)]
        examples = tuple(self._example(name, items[i], start) for name, i in shown)
        counts = {name: len(ids) for name, ids in groups.items()}
        return Changes(start.model.name, self.final.model.name, counts, examples)

    def _example(self, change: str, item: Sample, start: Evaluation) -> dict[str, Any]:
        asked = [e for e in self.chain if e in (self.chain[0], start, self.final)]
        answers = [(e.model.name, s) for e in asked if (s := e.answer(item.id))]
        users = [m["content"] for m in item.messages if m["role"] == "user"]
        return {
            "change": change,
            "kind": item.kind,
            "question": users[-1] if users else item.text,
            "gold": item.answer,
            "answers": answers,
            "id": item.id,
        }


def compare(label: str, before: Evaluation, after: Evaluation) -> Comparison:
    """The paired difference of two models; none when they answered different items."""
    same = before.means.keys() == after.means.keys()
    difference = paired(before.means, after.means) if same else None
    return Comparison(label, before.model.name, after.model.name, difference)


def _spread(ids: list[str], items: Mapping[str, Sample], most: int) -> list[str]:
    """The first few of different kinds; ids are hashes, so the first are as good as random."""
    chosen: dict[str, str] = {}
    for i in ids:
        chosen.setdefault(items[i].kind, i)
    return list(chosen.values())[:most]
