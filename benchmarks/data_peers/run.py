"""The data tools that phikit is held against, run in an environment of their own.

    python run.py minhash|text_dedup|decontaminate|janitor|tokenize|filters DOCUMENTS.jsonl WORKDIR

WORKDIR holds items.jsonl or tokenizer.json where they are needed. Prints one line of JSON:
`seconds` of one core's time, and the ids of the documents `removed`. `filters` also writes to
WORKDIR/filters.jsonl what each of datatrove's quality filters says of each document.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from pathlib import Path

import numpy as np


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_steps(*steps: object) -> None:
    from datatrove.pipeline.base import PipelineStep

    data = None
    for step in steps:
        assert isinstance(step, PipelineStep)
        data = step.run(data, rank=0, world_size=1)
    if data is not None:
        for _ in data:
            pass


def minhash(path: Path, work: Path) -> set[str]:
    from datatrove.pipeline.dedup import minhash as m
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = m.MinhashConfig()
    folder = {name: str(work / name) for name in ("signatures", "buckets", "clusters", "kept")}
    read = JsonlReader(str(path.parent), glob_pattern=path.name)
    run_steps(read, m.MinhashDedupSignature(folder["signatures"], config=config))
    for bucket in range(config.num_buckets):
        step = m.MinhashDedupBuckets(folder["signatures"], folder["buckets"], config=config)
        step.run(None, rank=bucket, world_size=config.num_buckets)
    m.MinhashDedupCluster(folder["buckets"], folder["clusters"], config=config).run(None)
    writer = JsonlWriter(folder["kept"], compression=None)
    run_steps(read, m.MinhashDedupFilter(folder["clusters"]), writer)
    writer.close()
    kept = {row["id"] for file in (work / "kept").glob("*.jsonl") for row in rows(file)}
    return {row["id"] for row in rows(path)} - kept


def text_dedup(path: Path, work: Path) -> set[str]:
    import datasets
    from text_dedup.minhash import main

    datasets.disable_progress_bars()
    # the same bands and n-grams as here; its other settings are its defaults
    asked = {"path": "json", "data_files": path, "split": "train", "cache_dir": work / "cache",
             "output": work / "kept", "column": "text", "num_proc": 1, "ngram": 5, "min_length": 1,
             "num_perm": 112, "b": 14, "r": 8, "hash_func": "xxh3", "hash_bits": 32}  # fmt: skip
    words = [w for name, value in asked.items() for w in (f"--{name}", str(value))]
    main(words, standalone_mode=False)
    kept = set(datasets.load_from_disk(str(work / "kept"))["id"])
    return {row["id"] for row in rows(path)} - kept


def decontaminate(path: Path, work: Path) -> set[str]:
    from datatrove.data import Document
    from datatrove.pipeline.decont import n_grams as d
    from datatrove.pipeline.readers import JsonlReader

    config = d.NGramsDecontConfig(n_grams=13, find_query_ngrams=True)
    index = work / "index"
    index.mkdir(exist_ok=True)
    filter_ = d.NGramsDecontFilter(str(index), config=config)
    # its indexer insists on a suite of tasks from the network: the same hashes, written by hand
    hashes: set[int] = set()
    for row in rows(work / "items.jsonl"):
        words = filter_.tokenizer.word_tokenize(d.simplify_text(row["text"], config.norm_config))
        hashes.update(filter_.hash_func(" ".join(g)) for g in d.ngrams(words, config.n_grams))
    np.array(sorted(hashes), config.hash_config.np_descr).tofile(index / "items.index.hashes")
    filter_.load_index_hashes()
    global started
    started = used()
    removed = set()
    for document in JsonlReader(str(path.parent), glob_pattern=path.name).run():
        assert isinstance(document, Document)
        if filter_.filter(document) is not True:
            removed.add(document.id)
    return removed


def janitor(path: Path, work: Path) -> set[str]:
    from lm_eval.decontamination.janitor import Janitor

    tool = Janitor(ngram_n=13)
    for row in rows(work / "items.jsonl"):
        tool.register_contaminant_python(row["text"])
    global started
    started = used()
    # a clean text comes back in one piece
    return {row["id"] for row in rows(path) if tool.clean_python(row["text"]) != [row["text"]]}


def tokenize(path: Path, work: Path) -> set[str]:
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    read = JsonlReader(str(path.parent), glob_pattern=path.name)
    run_steps(
        read,
        DocumentTokenizer(
            str(work / "tokens"),
            tokenizer_name_or_path=str(work / "tokenizer.json"),
            eos_token="<|endoftext|>",
            shuffle_documents=False,
            max_tokens_per_file=10**9,
            local_working_dir=str(work / "scratch"),
        ),
    )
    return set()


def filters(path: Path, work: Path) -> set[str]:
    from datatrove.data import Document
    from datatrove.pipeline import filters as f

    rules = {
        "gopher_quality": f.GopherQualityFilter(),
        "gopher_repetition": f.GopherRepetitionFilter(),
        "fineweb": f.FineWebQualityFilter(),
        "c4": f.C4QualityFilter(),
        "c4_any_ending": f.C4QualityFilter(filter_no_terminal_punct=False),
    }
    removed = set()
    with (work / "filters.jsonl").open("w") as out:
        for row in rows(path):
            said: dict[str, object] = {}
            for name, rule in rules.items():
                document = Document(text=row["text"], id=row["id"])
                try:
                    verdict = rule.filter(document)
                except ZeroDivisionError:
                    verdict = False, "divides by zero"
                said[name] = None if verdict is True else verdict[1]
                if name.startswith("c4") and verdict is True:
                    said[name + "_text"] = document.text
                if verdict is not True:
                    removed.add(row["id"])
            out.write(json.dumps(said) + "\n")
    return removed


def used() -> float:
    """Seconds of a processor, of this process and of those it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    logging.disable(logging.INFO)
    what, path, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    started = used()
    removed = globals()[what](path, work)
    print(json.dumps({"seconds": used() - started, "removed": sorted(removed)}))
