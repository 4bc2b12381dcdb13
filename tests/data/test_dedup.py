import random
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from phikit.data.corpus import duplicates
from phikit.data.corpus.clean import Gathered
from phikit.data.corpus.config import CorpusConfig
from phikit.data.dedup import DedupConfig
from phikit.records import Document

WORDS = [f"{a}{b}" for a in "bcdfglmnprst" for b in ("a", "en", "ist", "ol", "u", "ard")]


def essay(rng: random.Random, words: int = 120) -> list[str]:
    return [rng.choice(WORDS) for _ in range(words)]


def planted(seed: int = 3) -> tuple[list[str], dict[int, int]]:
    """200 texts, of which some are altered copies; index → index of its original."""
    rng = random.Random(seed)
    texts: list[str] = []
    copies: dict[int, int] = {}
    for n in range(200):
        if n % 5 == 4:
            original = rng.choice([i for i in range(n) if i not in copies])
            words = texts[original].split()
            words[rng.randrange(len(words))] = "altered"
            copies[n] = original
            texts.append(" ".join(words))
        else:
            texts.append(" ".join(essay(rng)))
    return texts, copies


def clusters_of(texts: list[str], **settings) -> list[tuple[int, ...]]:
    """Places of the texts that are alike, cluster by cluster."""
    config = CorpusConfig(dedup=DedupConfig(**settings))
    given = {"settings": config.model_dump(mode="json")}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("shard", "ranked", "joined", *map(str, range(config.dedup.bands))):
            (work / name).mkdir()
        gathered = Gathered(config, None)
        for text in texts:
            gathered.add(Document(text=text, source="web"))
        gathered.save(work / "shard")
        shards, ranked = [str(work / "shard")], str(work / "ranked")
        duplicates.rank(work / "ranked", shards, **given)
        bands = []
        for number in range(config.dedup.bands):
            bands.append(str(work / str(number)))
            duplicates.band(Path(bands[-1]), shards, ranked, number, 0, 1, **given)
        duplicates.join(work / "joined", shards, ranked, bands)
        stands_for = np.load(work / "joined" / "kept.npy").tolist()
    members: dict[int, list[int]] = {}
    for place, kept in enumerate(stands_for):
        members.setdefault(kept, []).append(place)
    return sorted(tuple(m) for m in members.values() if len(m) > 1)


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    texts, copies = planted()
    expected: dict[int, list[int]] = {}
    for copy, original in copies.items():
        expected.setdefault(original, [original]).append(copy)
    assert clusters_of(texts) == [tuple(expected[o]) for o in sorted(expected)]


def test_spacing_case_and_punctuation_make_no_difference() -> None:
    texts = [
        "Hello, world! It's 1,000 times the same.",
        "Another text.",
        "hello  WORLD\nits 1000 times the same",
    ]
    assert clusters_of(texts) == [(0, 2)]


def test_result_is_deterministic_and_independent_of_batching() -> None:
    texts, _ = planted(seed=9)
    filler = [" ".join(essay(random.Random(n), 400)) for n in range(1000, 1600)]
    plain = clusters_of(texts)
    assert clusters_of(texts) == plain
    assert clusters_of(texts + filler) == plain  # several batches of signatures


def test_short_and_empty_texts_do_not_cluster_with_others() -> None:
    assert clusters_of(["", "one", "two", "one two", "two one"]) == []
    assert clusters_of([]) == []


def test_threshold_decides() -> None:
    rng = random.Random(5)
    words = essay(rng, 200)
    half = words[:100] + essay(rng, 100)
    assert clusters_of([" ".join(words), " ".join(half)]) == []
    assert clusters_of([" ".join(words), " ".join(half)], threshold=0.2, bands=56) == [(0, 1)]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_joining_gives_the_smallest_member_in_any_order(pairs) -> None:
    results = []
    for order in (pairs, pairs[::-1], sorted(pairs)):
        sets = np.arange(20)
        duplicates._join(sets, np.array(order, np.int64).reshape(-1, 2))
        results.append(sets.tolist())
    assert all(a == b for a, b in pairwise(results))
    assert all(root <= i and results[0][root] == root for i, root in enumerate(results[0]))
    assert all(results[0][a] == results[0][b] for a, b in pairs)
