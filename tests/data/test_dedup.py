import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from phikit.data.dedup import DedupConfig, Deduplicator, UnionFind

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
    dedup = Deduplicator(DedupConfig(**settings), seed=1)
    for text in texts:
        dedup.add(text)
    return [c.members for c in dedup.clusters()]


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    texts, copies = planted()
    expected: dict[int, list[int]] = {}
    for copy, original in copies.items():
        expected.setdefault(original, [original]).append(copy)
    assert clusters_of(texts) == [tuple(expected[o]) for o in sorted(expected)]


def test_exact_duplicates_are_told_whatever_their_spacing() -> None:
    dedup = Deduplicator(DedupConfig())
    dedup.add("Hello, world! It's 1,000 times the same.")
    dedup.add("Another text.")
    dedup.add("hello  WORLD\nits 1000 times the same")
    assert dedup.exact().tolist() == [0, 1, 0]
    assert [c.members for c in dedup.clusters()] == [(0, 2)]
    assert dedup.clusters()[0].similarity == (1.0, 1.0)


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
def test_union_find_gives_the_smallest_member_in_any_order(pairs) -> None:
    results = []
    for order in (pairs, pairs[::-1], sorted(pairs)):
        sets = UnionFind(20)
        for a, b in order:
            sets.join(a, b)
        results.append([sets.find(i) for i in range(20)])
    assert all(a == b for a, b in pairwise(results))
    assert all(root <= i and results[0][root] == root for i, root in enumerate(results[0]))
    assert all(results[0][a] == results[0][b] for a, b in pairs)
