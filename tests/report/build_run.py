"""Builds a run directory as a small real run would leave it, through the real writers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.files import write_atomic, write_json
from phikit.pivots.results import Alternative, Pivot, Trace
from phikit.records import Document, Sample, Score, Verdict, write_records

KINDS = ("groups", "comparison", "equations", "ordering", "tracing", "units")
# what a hostile model may say: it must arrive on the page as text
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
VERSIONS = {"python": "3.11.2", "machine": "x86_64", "phikit": "0.1.0", "torch": "2.13.0"}


@dataclass
class Builder:
    """Writes stage after stage; the folders are numbered in the order of the calls."""

    run: Path
    seed: int = 0
    rng: np.random.Generator = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([7, self.seed])
        self.items = [_item(i) for i in range(300)]
        self.hardness = self.rng.normal(0.0, 1.6, len(self.items))
        questions = [m["content"] for item in self.items for m in item.messages]
        self.tokenizer = train_bpe(questions, 400, NANO_SPECIAL)
        self.coin = self.rng.random((len(self.items), 5))

    def stage(
        self,
        name: str,
        verb: str,
        inputs: dict[str, list[str]] | None = None,
        summary: dict[str, Any] | None = None,
        seconds: float = 8.0,
        **config: Any,
    ) -> Path:
        self.count += 1
        folder = self.run / f"{self.count:02d}-{name}"
        folder.mkdir(parents=True)
        trains, asks = verb.startswith("train."), verb.startswith(("evals.", "pivots."))
        cost = {
            "seconds": seconds,
            "tokens_trained": int(28_000 * seconds) if trains else 0,
            "tokens_generated": int(9_000 * seconds) if asks or verb == "train.grpo" else 0,
            "flops": 1.4e11 * seconds if trains or asks else 0.0,
            "peak_bytes": int(2**30 * (0.5 + 0.02 * seconds)),
        }
        record = {
            "name": name,
            "verb": verb,
            "address": hashlib.sha256(name.encode()).hexdigest()[:32],
            "inputs": inputs or {},
            "config": config,
            "summary": summary or {},
            "cost": cost,
            "versions": VERSIONS,
            "identity": {"seed": 1234 + self.count, "threads": 2, "code": "c0de"},
            "artefacts": {},
        }
        write_json(folder / "stage.json", record)
        return folder

    def train(self, name: str, verb: str, seconds: float, panels: dict[str, tuple[float, float]],
              **inputs: list[str]) -> None:  # fmt: skip
        folder = self.stage(name, verb, inputs, {"steps": 300}, seconds, lr=1e-3)
        rows = []
        for step in range(1, 301):
            done = 1 - math.exp(-step / 60)
            row: dict[str, Any] = {"step": step, "lr": 1e-3, "tokens": 4096, "grad_norm": 1.0}
            for key, (start, end) in panels.items():
                noise = abs(end - start) * self.rng.normal(0, 0.08)
                row[key] = start + (end - start) * done + noise
            rows.append(row)
        rows[40]["loss"] = None  # a step that was skipped
        write_atomic(folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
        _write_model(folder / "model", self.tokenizer)

    def evaluate(self, model: str, skill: float, seconds: float = 14.0) -> None:
        """Scores of a model whose log-odds on an item are its skill minus the item's hardness."""
        folder = self.stage(
            f"eval-{model}",
            "evals.run",
            {"model": [model], "items": ["items"]},
            seconds=seconds,
            samples=4,
            temperature=0.5,
        )
        scores = []
        for i, item in enumerate(self.items):
            right = 1 / (1 + math.exp(self.hardness[i] - skill))
            for k, sample in enumerate((-1, 0, 1, 2, 3)):
                passed = bool(self.coin[i, k] < right)
                scores.append(_score(item, sample, passed, i))
        write_records(folder / "scores.parquet", scores, Score)


def _item(i: int) -> Sample:
    a, b, c = 3 + i % 7, 4 + i % 5, 2 + i % 9
    question = (
        f"Ada has {a} boxes with {b} pens in each. She gives away {c}. "
        f"How many pens does she have now? (variant {i})"
    )
    return Sample(
        kind=KINDS[i % len(KINDS)],
        source="synthetic",
        messages=({"role": "user", "content": question},),
        verifier="math",
        answer=str(a * b - c),
    )


def _score(item: Sample, sample: int, passed: bool, i: int) -> Score:
    gold = int(item.answer)
    said = gold if passed else gold + 3
    text = f"The boxes hold {gold + 2} pens.\nNow there are {said}.\nAnswer: {said}"
    text = HOSTILE if not passed and i % 50 == 3 else text
    verdict = Verdict(
        passed=passed, score=float(passed), verifier="math",
        reason="equal" if passed else f"answered {said}, not {gold}",
    )  # fmt: skip
    return Score(task=item.kind, item=item.id, sample=sample, verdict=verdict, cost=34, text=text)


def _write_model(folder: Path, tokenizer: Tokenizer) -> None:
    """A safetensors header with the shapes of a decoder of 0.75 M parameters, and no tensors."""
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "model.embed_tokens.weight": {"dtype": "BF16", "shape": [2048, 128]},
            "model.layers.weight": {"dtype": "BF16", "shape": [3820, 128]},
        }
    ).encode()
    write_atomic(folder / "model.safetensors", struct.pack("<Q", len(header)) + header)
    tokenizer.save(folder)


def _documents(b: Builder) -> list[Document]:
    folder = b.stage(
        "documents",
        "data.documents",
        {"items": ["items"]},
        {
            "by_source": {
                "web": {"read": 1210, "kept": 911, "chars": 2_410_332,
                        "rejected": {"too short": 211, "contaminated": 1, "near duplicate": 87}},
                "code": {"read": 1874, "kept": 1702, "chars": 9_220_118,
                         "rejected": {"generated": 31, "exact duplicate": 141}},
                "acquired": {"read": 93, "kept": 93, "chars": 701_400,
                             "rejected": {}},
            }
        },
        9.4,
    )  # fmt: skip
    documents = [
        Document(text="Return the sum of a 'start' value and an iterable of numbers.\n" * 30,
                 source="web", licence="PSF-2.0", meta={"name": "builtins.sum"}),
        Document(text="def bisect_left(a, x):\n    lo, hi = 0, len(a)\n    while lo < hi:\n"
                 "        mid = (lo + hi) // 2\n        if a[mid] < x:\n            lo = mid + 1\n"
                 "        else:\n            hi = mid\n    return lo\n",
                 source="code", licence="PSF-2.0", meta={"name": "bisect.py"}),
        Document(text="The assert statement\n" + "*" * 20 + "\nAssert statements are a convenient "
                 "way to insert debugging assertions into a program.", source="acquired",
                 licence="PSF-2.0", meta={"name": "topics: assert"}),
    ]  # fmt: skip
    write_records(folder / "documents.parquet", documents, Document)
    ledger = {
        "document": documents[0].id, "verdict": "contaminated", "rule": "13-gram", "ratio": 1.0,
        "text": "… Ada has 3 boxes with 4 pens in each. She gives away 2. How many pens …",
        "item": b.items[0].id, "item_text": b.items[0].messages[0]["content"],
    }  # fmt: skip
    partial = {**ledger, "verdict": "partial", "rule": "7-gram", "ratio": 0.41, "text": HOSTILE}
    write_atomic(
        folder / "contamination.jsonl", json.dumps(ledger) + "\n" + json.dumps(partial) + "\n"
    )
    return documents


def _samples(b: Builder, name: str, documents: Sequence[Document], thought: bool) -> None:
    counts = {
        kind: {"accepted": 2000 - 90 * i, "asked": 2150, "duplicate": 90, "collision": i % 3,
               "rejected by math": 7 * i}
        for i, kind in enumerate((*KINDS, "instruction reversal"))
    }  # fmt: skip
    folder = b.stage(
        name,
        "synth.procedural",
        {"items": ["items"], "documents": ["documents"]},
        {
            "accepted": sum(c["accepted"] for c in counts.values()),
            "types": counts,
            "disjointness": {"items": 500, "compared": 15_050, "dropped": 6},
        },
        11.0,
        style="thought" if thought else "short",
    )
    verdict = Verdict(passed=True, score=1.0, reason="equal", verifier="math")
    samples = []
    for i, kind in enumerate(KINDS):
        think = "<think>6 boxes of 4 make 24. Minus 5 is 19.</think>" if thought else ""
        samples.append(
            Sample(
                kind=kind,
                source="synthetic",
                messages=(
                    {"role": "user", "content": f"Six boxes hold {i + 4} pens each; 5 are lost."},
                    {"role": "assistant", "content": f"{think}They hold {6 * (i + 4)} pens.\n"
                                                     f"Answer: {6 * (i + 4) - 5}"},
                ),
                verifier="math",
                answer=str(6 * (i + 4) - 5),
                verdicts=(verdict,),
                meta={"teacher": "procedural", "stream": "0/train", "index": i},
            )
        )  # fmt: skip
    samples.append(
        Sample(
            kind="instruction reversal",
            source="code",
            parents=(documents[1].id,),
            messages=(
                {"role": "user", "content": "Write bisect_left(a, x): where x belongs in a."},
                {"role": "assistant", "content": "```python\n" + documents[1].text + "```"},
            ),
            verifier="code",
            answer="[]",
            verdicts=(Verdict(passed=True, score=1.0, reason="5 tests", verifier="code"),),
        )
    )
    write_records(folder / "samples.parquet", samples, Sample)


def _shards(b: Builder, name: str, samples: list[str]) -> None:
    b.stage(
        name,
        "data.shards",
        {"tokenizer": ["tokenizer"], "documents": ["documents"], "samples": samples},
        {
            "tokens": 5_400_000,
            "sources": {
                "web": {"tokens": 810_000, "unique_tokens": 803_000, "epochs": 1.01},
                "web_rewrites": {"tokens": 810_000, "unique_tokens": 402_000, "epochs": 2.01},
                "synthetic": {"tokens": 2_160_000, "unique_tokens": 1_080_000, "epochs": 2.0},
                "code": {"tokens": 1_080_000, "unique_tokens": 2_900_000, "epochs": 0.37},
                "acquired": {"tokens": 540_000, "unique_tokens": 230_000, "epochs": 2.35},
            },
        },
        4.1,
    )


def _pivots(b: Builder) -> None:
    """Traces and pivots as the search writes them: token ids, p at every position, suspects."""
    folder = b.stage("pivots", "pivots.search", {"model": ["sft"], "problems": ["items"]},
                     {"questions": 400, "pairs": 311, "pivots": 288}, 96.0, gap=0.2)  # fmt: skip
    traces: list[dict[str, Any]] = []
    pivots: list[dict[str, Any]] = []
    for item in b.items[:14]:
        _search(b, item, traces, pivots)
    traces.append({**traces[0], "problem": "refused", "outcome": "refused", "solutions": []})
    write_atomic(folder / "searches.jsonl", "".join(json.dumps(t) + "\n" for t in traces))
    write_atomic(folder / "pivots.jsonl", "".join(json.dumps(p) + "\n" for p in pivots))


def _search(
    b: Builder, item: Sample, traces: list[dict[str, Any]], pivots: list[dict[str, Any]]
) -> None:
    """One searched solution with three pivots: up, down, up."""
    tokenizer, n = b.tokenizer, len(traces)
    prompt = tuple(tokenizer.encode(item.messages[0]["content"]))
    pens = 6 * (5 + n)
    text = f"The boxes hold {5 + n} * 6 = {pens} pens.\nNow there are {pens} - 7"
    text += f" = {pens - 7} pens, so that is the answer.\nAnswer: {pens - 7}"
    ids = [*tokenizer.encode(text), tokenizer.special["<|im_end|>"]]
    at = sorted(int(i) for i in b.rng.choice(np.arange(3, len(ids) - 6), 3, replace=False))
    jumps = dict(zip(at, (0.38, -0.31, 0.36), strict=True))
    p, points, suspects = 0.44, [], []
    for i, token in enumerate(ids):
        half = 0.05 + 0.002 * i
        points.append({"position": i, "p": p, "lower": max(0.0, p - half),
                       "upper": min(1.0, p + half), "n": max(12, 400 - 9 * i)})  # fmt: skip
        after = min(0.97, max(0.03, p + jumps.get(i, 0.0) + b.rng.normal(0, 0.012)))
        if i in jumps:
            suspects.append({"position": i, "state": "paired", "delta": after - p, "n": 210})
            pivots.append(_pivot(b, item, (*prompt, *ids[:i]), i, token, p, after))
        p = after
    points.append({"position": len(ids), "p": 1.0, "lower": 1.0, "upper": 1.0, "n": 0})
    solution = {"ids": ids, "passed": True, "probability": [0.6] * len(ids), "points": points,
                "tree": {"low": 0, "high": len(ids), "outcome": "flat"}, "suspects": suspects,
                "tokens": [tokenizer.decode([i]) for i in ids]}  # fmt: skip
    trace = Trace(problem=item.id, kind=item.kind, prompt_ids=prompt, outcome="done", p=0.44, n=48,
                  samples=2400, tokens=70_000, solutions=[solution])  # fmt: skip
    traces.append({**dataclasses.asdict(trace), "prompt": tokenizer.decode(prompt)})


def _pivot(
    b: Builder, item: Sample, prefix: tuple[int, ...], i: int, token: int, p: float, after: float
) -> dict[str, Any]:
    plus, minus = b.tokenizer.encode("+")[0], b.tokenizer.encode("-")[0]
    row = dataclasses.asdict(
        Pivot(
            problem=item.id, kind=item.kind, verifier="math", prefix_ids=prefix, position=i,
            token=token, probability=0.6, solution_passed=True, delta=after - p,
            lower=after - p - 0.09, upper=after - p + 0.09, p_before=p, p_after=after, n_after=120,
            n_astray=90, log_e=9.0,
            alternatives=(Alternative(plus, 0.31, max(0.0, p - 0.2), 96, 0.0, 0.5, True),
                          Alternative(minus, 0.08, p, 20, 0.1, 0.9, False)),
        )
    )  # fmt: skip
    for alternative, said in zip(row["alternatives"], (HOSTILE, "-"), strict=True):
        alternative["token_text"] = said
    return {**row, "token_text": b.tokenizer.decode([token])}


def _recall(b: Builder, name: str, model: str, shares: Sequence[float]) -> None:
    rows = [
        {"length": length, "accuracy": share, "low": max(0, share - 0.1),
         "high": min(1, share + 0.1), "items": 50}
        for length, share in zip((128, 256, 512, 900), shares, strict=True)
    ]  # fmt: skip
    summary = {"context": 256 if model == "pretrain" else 1024, "by_length": rows}
    b.stage(name, "evals.recall", {"model": [model], "items": ["items"]}, summary, 5.0)


def build(run: Path, until: str = "", seed: int = 0) -> Path:
    """A whole run, or one that stopped after SFT with `until="sft"`."""
    b = Builder(run, seed)
    folder = b.stage("items", "synth.items", {}, {"items": 300, "recall": 200}, 1.2)
    write_records(folder / "items.parquet", b.items, Sample)
    documents = _documents(b)
    _samples(b, "teacher", documents, thought=False)
    b.stage("tokenizer", "data.tokenizer", {"documents": ["documents"]}, {"vocabulary": 2048}, 3.0)
    _shards(b, "shards", ["teacher"])
    b.train("pretrain", "train.pretrain", 195.0, {"loss": (7.6, 1.1)}, shards=["shards"])
    b.evaluate("pretrain", -1.1)
    _recall(b, "recall-before", "pretrain", (0.98, 0.92, 0.11, 0.04))
    _shards(b, "long-shards", ["teacher"])
    b.train("midtrain", "train.midtrain", 61.0, {"loss": (1.4, 1.05)}, model=["pretrain"],
            shards=["long-shards"])  # fmt: skip
    _recall(b, "recall-after", "midtrain", (0.98, 0.96, 0.90, 0.81))
    b.evaluate("midtrain", -0.9)
    b.train("sft", "train.sft", 44.0, {"loss": (0.9, 0.31)}, model=["midtrain"],
            samples=["teacher"])  # fmt: skip
    b.evaluate("sft", 0.15)
    write_atomic(run / "recipe.yaml", "name: nano\nseed: 0\nthreads: 2\nstages:\n  - name: items\n")
    if until == "sft":
        return run
    _pivots(b)
    dpo = {"loss": (0.69, 0.41), "margin": (0.0, 1.3), "accuracy": (0.5, 0.86)}
    b.train("dpo-pivots", "train.dpo", 18.0, dpo, model=["sft"], pairs=["pivots"])
    b.evaluate("dpo-pivots", 0.45)
    b.stage("judge", "synth.judge_pairs", {"model": ["dpo-pivots"], "problems": ["teacher"]},
            {"pairs": 900}, 21.0)  # fmt: skip
    b.train("dpo-judge", "train.dpo", 22.0, dpo, model=["dpo-pivots"], pairs=["judge"])
    b.evaluate("dpo-judge", 0.47)
    b.train("dpo-judge-only", "train.dpo", 22.0, dpo, model=["sft"], pairs=["judge"])
    b.evaluate("dpo-judge-only", 0.2)
    _samples(b, "thoughts", documents, thought=True)
    b.train("reason", "train.sft", 40.0, {"loss": (0.8, 0.4)}, model=["dpo-judge"],
            samples=["thoughts"])  # fmt: skip
    b.evaluate("reason", 0.25)
    grpo = {"loss": (0.02, -0.01), "reward": (0.21, 0.44), "kl": (0.0, 0.012)}
    b.train("grpo", "train.grpo", 88.0, grpo, model=["reason"], problems=["thoughts"])
    b.evaluate("grpo", 0.9)
    b.stage("export", "export.hf", {"model": ["grpo"]},
            {"max_logit_difference": 3.1e-6, "same_greedy_text": True}, 6.0)  # fmt: skip
    return run
