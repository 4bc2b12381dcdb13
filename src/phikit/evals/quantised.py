"""What quantising a model cost: one table of quality, size and speed against the dense model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from phikit.engine.load import load
from phikit.engine.local import LocalEngine
from phikit.engine.quant import calibrate, check, files
from phikit.engine.runners import Model
from phikit.errors import PhikitError
from phikit.evals import tasks
from phikit.evals.stages import prompting
from phikit.models.decoder import Decoder
from phikit.records import Sample
from phikit.synth.types.catalogue import find
from phikit.verify.base import ByName

_KIND = "arithmetic"
_SEQUENCES, _LENGTH = 16, 512
_ANSWER_TOKENS = 96


@dataclass(frozen=True)
class Row:
    """One model of the table; the distance of the dense model from itself is zero.

    Attributes:
        cache: the precision of keys and values.
        right, asked: exercises.
        bytes: of the model's files; cache_bytes: of a position's keys and values, where they were
            measured in the cache.
    """

    name: str
    cache: str
    distance: check.Distance
    right: int
    asked: int
    bytes: int
    cache_bytes: float | None
    tokens_per_second: float


def arithmetic_items(count: int) -> list[Sample]:
    """Easy word problems of one calculation, the same every time."""
    rng = Random(0)
    write = find("changes").write
    exercises = [write(rng, 1) for _ in range(count)]
    return [
        Sample(
            kind=_KIND,
            source="synthetic",
            messages=({"role": "user", "content": e.question},),
            verifier="number",  # small models seldom keep to the form that "math" reads
            answer=e.gold or e.answer,
        )
        for e in exercises
    ]


def compare(
    dense: Path,
    quantised: Mapping[str, Path],
    items: int = 48,
    say: Callable[[str], None] = lambda text: None,
    caches: Sequence[str] = ("", "int8"),
) -> list[Row]:
    """Measures models against the dense one they were made of, which is the first row.

    The text is the half of Python's documentation that calibration does not read. Speeds are those
    of one stream after another: compare them within one table only. With a cache in 8 bits the
    distance is that of the engine's steps, which read it; where the engine has none for the model,
    that is said, and the rows are left out.

    Args:
        caches: for every model: "" for one of the model's precision, "int8".

    Raises:
        PhikitError: a directory cannot be loaded, or the engine does not run the models.
    """
    paths = {"bf16": dense, **quantised}
    models = {name: load(path) for name, path in paths.items()}
    reference = models["bf16"]
    tokenizer = prompting(reference, dense, "chat")
    ids_BL = held_out(dense, reference)
    measured: dict[tuple[str, str], check.Logits] = {}
    for name, model in models.items():
        for cache in caches:
            try:
                measured[name, cache] = (
                    check.Cached(model, cache, ids_BL.shape[1]) if cache else model
                )
            except PhikitError as error:
                say(f"{name} with a cache of {cache} is left out: {error.message}")
    say("comparing distributions on held-out text")
    distances = check.distances(reference, list(measured.values()), ids_BL)
    rows = []
    for ((name, cache), how), distance in zip(measured.items(), distances, strict=True):
        model = models[name]
        say(f"asking {name}{f' with a cache of {cache}' if cache else ''} {items} questions")
        right = _right(model, tokenizer, arithmetic_items(items), cache)
        speed = check.decoding_speed(model, ids_BL[0, :128].tolist(), cache=cache)
        kept = how.bytes if isinstance(how, check.Cached) else None
        size = files.total_bytes(paths[name])
        rows.append(Row(name, cache or "bf16", distance, right, items, size, kept, speed))
    return rows


def ways(dense: Path) -> list[tuple[str, str]]:
    """The kinds of weights, and methods of rounding, that there are for a model."""
    found = [("int8", "rtn"), ("int4", "rtn")]
    _, model = files.skeleton(dense)
    return [*found, ("int4", "gptq")] if isinstance(model, Decoder) else found


def held_out(dense: Path, model: Model):  # type: ignore[no-untyped-def]
    """The tokens [B, L] that quality is measured on."""
    from phikit.chat.tokenizer import Tokenizer

    length = min(_LENGTH, model.config.max_positions)
    return calibrate.sequences(
        calibrate.documentation(held_out=True), Tokenizer.load(dense), _SEQUENCES, length,
        model.config.vocab_size,
    )  # fmt: skip


def _right(model: Model, ask_as: tasks.Prompting, items: Sequence[Sample], cache: str = "") -> int:
    asking = tasks.Asking(samples=0, greedy=True, max_tokens=_ANSWER_TOKENS)
    engine = LocalEngine(model, tokenizer=ask_as.tokenizer, cache=cache)
    answers = tasks.ask(engine, ask_as, items, asking)
    return sum(score.verdict.passed for score in tasks.judge(answers, ByName()))


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    head = f"{'weights':<10} {'cache':<5} {'KL':>8} {'top-1':>7} {'perplexity':>11} "
    lines = [head + f"{'arithmetic':>11} {'size':>10} {'tokens/s':>9}"]
    for r in rows:
        d = r.distance
        lines.append(
            f"{r.name:<10} {r.cache:<5} {d.kl:>8.4f} {d.agreement:>7.1%} {d.perplexity:>11.2f} "
            f"{f'{r.right}/{r.asked}':>11} {r.bytes / 2**20:>6.0f} MiB {r.tokens_per_second:>9.1f}"
        )
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> str:
    """The rows as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=2)
