"""What a constraint costs: the same steps with every row bound to a JSON schema, and with none.

The rows have random seeds and go on for a fixed number of steps (the schema is of an array that
does not end before). Both run on one scheduler, in turns; medians over the turns.

    python benchmarks/constrained.py MODEL [--steps 24] [--turns 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from phikit.chat.load import load_tokenizer
from phikit.engine.base import Constraint, Request, Sampling
from phikit.engine.native.runner import NativeRunner
from phikit.engine.scheduler import Scheduler
from phikit.engine.texts import Texts
from phikit.fetch import resolve
from phikit.models.load import load

GOAL = 0.95
PERSON = {
    "type": "object", "required": ["name", "age", "mail"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "pattern": "^[a-z.]+@[a-z]+\\.(com|org)$"},
    },
}  # fmt: skip
SCHEMA = {"type": "array", "items": PERSON, "minItems": 100}


def rate(scheduler: Scheduler, prompt: list[int], rows: int, steps: int, bound: bool) -> float:
    """Tokens per second of so many rows, without the prompt."""
    form = Constraint("json_schema", json.dumps(SCHEMA)) if bound else None
    sampling = Sampling(max_tokens=steps + 1, constraint=form)
    for seed in range(rows):
        scheduler.submit(Request(tuple(prompt), sampling, 1, seed))
    scheduler.step()
    start, before = time.perf_counter(), scheduler.generated
    while scheduler.busy:
        scheduler.step()
    return (scheduler.generated - before) / (time.perf_counter() - start)


def per_mask(texts: Texts, tokens: int = 200) -> float:
    """Microseconds to take one token in and say which may follow, along a valid document."""
    people = [{"name": f"Ada {i}", "age": i, "mail": "ada@lovelace.org"} for i in range(100)]
    ids = texts.tokenizer.encode(json.dumps(people))[:tokens]
    watch = texts.watch(Sampling(constraint=Constraint("json_schema", json.dumps(SCHEMA))))
    assert watch is not None
    start = time.perf_counter()
    for token in ids:
        assert watch.matcher.consume_token(token) and not texts._next(watch)
    return (time.perf_counter() - start) / len(ids) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    model = resolve(options.model)
    tokenizer, weights = load_tokenizer(model), load(model)
    texts = Texts(tokenizer, weights.config.vocab_size)
    prompt = tokenizer.encode("A list of people, as JSON:\n")
    print(f"{model.name}: {per_mask(texts):.0f} µs for a token and the mask after it")
    found = []
    for count in (1, 32):
        scheduler = Scheduler(NativeRunner(weights), max_rows=count, cache_bytes=2**29, texts=texts)
        speeds: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(options.turns + 1):  # the first one warms up
            for bound in (False, True):
                speed = rate(scheduler, prompt, count, options.steps, bound)
                if turn:
                    speeds[bound].append(speed)
        ours, peer = (statistics.median(speeds[b]) for b in (True, False))
        ratio = statistics.median(a / b for a, b in zip(speeds[True], speeds[False], strict=True))
        name = f"{count} row{'s' * (count > 1)}, JSON schema"
        print(f"{name:>24}: {ours:.1f} tokens/s, without {peer:.1f}, ratio {ratio:.3f}")
        found.append(
            {"name": name, "ours": round(ours, 1), "peer": round(peer, 1),
             "ratio": round(ratio, 3), "goal": GOAL, "met": ratio >= GOAL}
        )  # fmt: skip
    print("The limit is the engine without a constraint: the peer.")
    print(json.dumps({"bench": "constrained", "rows": found}))


if __name__ == "__main__":
    main()
