"""The stage `data.decontaminate`: keeps evaluation items out of everything that is trained on.

Samples of any kind (synthetic texts, chats for SFT, problems for reinforcement learning) are
compared by their words. Preference pairs are token ids; a tokenizer turns them into words first,
the prompt with either answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from phikit.data.decontaminate import Contamination, Decontaminator, item_text, sample_text
from phikit.data.item_index import DecontaminationConfig
from phikit.data.paraphrase import Paraphrases
from phikit.data.vectors import MODEL, load_encoder
from phikit.errors import PhikitError
from phikit.files import LineFile
from phikit.records import Pair, Record, Sample, iter_records, read_records, write_records
from phikit.stage import Context, Estimate, Stage

_AT_ONCE = 1000  # records compared with the items at once
R = TypeVar("R", bound=Record)


class DecontaminateConfig(DecontaminationConfig):
    """Samples and pairs that hold evaluation items, by the rule that documents are held to."""

    paraphrase: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="cosine from which a passage says the same as an item in other words; by "
        "default that is not looked for. See docs/lab-notebook.md for what 0.65 to 0.75 find",
    )
    encoder: str = Field(
        default=MODEL, description="the sentence encoder for that: a folder, or a fetched one"
    )


def run_decontaminate(
    ctx: Context, settings: DecontaminateConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Removes what is contaminated; both texts of every finding go to the ledger.

    Raises:
        PhikitError: neither samples nor pairs are given, or pairs without a tokenizer.
    """
    if not {"samples", "pairs"} & inputs.keys():
        raise PhikitError("nothing to decontaminate", "give the input samples, pairs, or both")
    items = read_records(inputs["items"] / "items.parquet", Sample)
    decontaminator = Decontaminator(((i.id, item_text(i)) for i in items), settings)
    work: list[_Kept] = []
    if "samples" in inputs:
        work.append(_Kept(inputs["samples"] / "samples.parquet", Sample, sample_text))
    if "pairs" in inputs:
        work.append(_Kept(inputs["pairs"] / "pairs.parquet", Pair, _pair_text(inputs)))
    # the allow-list rests on all of them together
    for each in work:
        each.count(decontaminator)
    allowed = decontaminator.settle()
    if settings.paraphrase is not None:
        encoder = load_encoder(settings.encoder)
        paraphrases = Paraphrases(decontaminator.items, encoder, settings.paraphrase)
        for each in work:
            each.compare(paraphrases)
    with LineFile(ctx.dir / "contamination.jsonl") as ledger:
        for each in work:
            each.write(ctx.dir, decontaminator, ledger)
    findings = sum((each.findings for each in work), Counter())
    return {
        **{each.path.stem: each.kept for each in work},
        "contaminated": findings["contaminated"],
        "partial": findings["partial"],
        "by_kind": {
            kind: {"read": n, "removed": each.removed[kind]}
            for each in work
            for kind, n in sorted(each.read.items())
        },
        "items": len(items),
        "allowed": allowed,
    }


class _Kept:
    """The records of one file, with what was found in them."""

    def __init__(self, path: Path, cls: type[R], text: Callable[[R], str]) -> None:
        self.path, self.cls, self.text = path, cls, text
        self.suspects: set[int] = set()
        self.alone: dict[int, Contamination] = {}
        self.paraphrases: dict[int, Contamination] = {}
        self.read: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()
        self.findings: Counter[str] = Counter()
        self.kept = 0

    def count(self, decontaminator: Decontaminator) -> None:
        """Notes which may share something with an item, and what is common among them."""
        for first, batch in self._batches():
            self.suspects.update(first + n for n in decontaminator.count(batch))
        # a question too short for n-grams is told from what is said around it by standing alone
        records = enumerate(iter_records(self.path, self.cls))
        while some := list(islice(records, _AT_ONCE)):
            said = [(n, m["content"]) for n, r in some for m in getattr(r, "messages", ())]
            found = decontaminator.same_words([text for _, text in said])
            self.alone.update({said[at][0]: hit for at, hit in found.items()})

    def compare(self, paraphrases: Paraphrases) -> None:
        """Notes which say what an item says."""
        for first, batch in self._batches():
            found = paraphrases.check_all(batch)
            self.paraphrases.update({first + n: hit for n, hit in found.items()})

    def _batches(self) -> Iterator[tuple[int, list[str]]]:
        """The texts of a thousand records and the number of the first, again and again."""
        records, first = iter_records(self.path, self.cls), 0
        while batch := [self.text(record) for record in islice(records, _AT_ONCE)]:
            yield first, batch
            first += len(batch)

    def write(self, folder: Path, decontaminator: Decontaminator, ledger: LineFile) -> None:
        """Writes those that are clean."""

        def clean() -> Iterator[Record]:
            for number, record in enumerate(iter_records(self.path, self.cls)):
                kind = str(getattr(record, "kind", ""))
                self.read[kind] += 1
                hit = decontaminator.check(self.text(record)) if number in self.suspects else None
                if hit is None or hit.verdict == "partial":
                    hit = self.alone.get(number, self.paraphrases.get(number, hit))
                if hit is not None:
                    ledger.add(hit.row(record.id))
                    self.findings[hit.verdict] += 1
                    if hit.verdict == "contaminated":
                        self.removed[kind] += 1
                        continue
                yield record

        self.kept = write_records(folder / self.path.name, clean(), self.cls)


def _pair_text(inputs: Mapping[str, Path]) -> Callable[[Pair], str]:
    if "tokenizer" not in inputs:
        raise PhikitError(
            "pairs are token ids: comparing them with evaluation items needs their tokenizer",
            "give the input tokenizer, a folder with tokenizer.json",
        )
    from phikit.chat.load import load_tokenizer  # needs torch, which reading a recipe must not

    folder = inputs["tokenizer"]
    tokenizer = load_tokenizer(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)

    def text(pair: Pair) -> str:
        parts = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
        return "\n".join(tokenizer.decode(list(ids)) for ids in parts)

    return text


DECONTAMINATE: Stage[DecontaminateConfig] = Stage(
    verb="data.decontaminate",
    config=DecontaminateConfig,
    run=run_decontaminate,
    inputs=("items", "samples?", "pairs?", "tokenizer?"),
    estimate=lambda _: Estimate("all samples and pairs of its inputs", 5),
    help="remove samples, problems and preference pairs that contain evaluation items",
)
