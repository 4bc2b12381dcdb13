"""What quantising a model cost: one table of quality, size and speed against the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from phikit.engine.load import load
from phikit.engine.local import LocalEngine
from phikit.engine.quant import calibrate, check, files
from phikit.engine.runners import Model
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
    """One model of the table; the distance of the dense model from itself is zero."""

    name: str
    distance: check.Distance
    right: int
    asked: int
    bytes: int
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
) -> list[Row]:
    """Measures models against the dense one they were made of, which is the first row.

    The text is the half of Python's documentation that calibration does not read. Speeds are those
    of one stream after another: compare them within one table only.

    Raises:
        PhikitError: a directory cannot be loaded, or the engine does not run the models.
    """
    paths = {"bf16": dense, **quantised}
    models: dict[str, Model] = {}
    for name, path in paths.items():
        models[name] = load(path)
    reference = models["bf16"]
    tokenizer = prompting(reference, dense, "chat")
    ids_BL = held_out(dense, reference)
    say("comparing distributions on held-out text")
    distances = check.distances(reference, list(models.values()), ids_BL)
    rows = []
    for (name, model), distance in zip(models.items(), distances, strict=True):
        say(f"asking {name} {items} questions")
        right = _right(model, tokenizer, arithmetic_items(items))
        speed = check.decoding_speed(model, ids_BL[0, :128].tolist())
        rows.append(Row(name, distance, right, items, files.total_bytes(paths[name]), speed))
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


def _right(model: Model, ask_as: tasks.Prompting, items: Sequence[Sample]) -> int:
    asking = tasks.Asking(samples=0, greedy=True, max_tokens=_ANSWER_TOKENS)
    answers = tasks.ask(LocalEngine(model, tokenizer=ask_as.tokenizer), ask_as, items, asking)
    return sum(score.verdict.passed for score in tasks.judge(answers, ByName()))


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    head = f"{'weights':<12} {'KL':>8} {'top-1':>7} {'perplexity':>11} {'arithmetic':>11} "
    lines = [head + f"{'size':>10} {'tokens/s':>9}"]
    for r in rows:
        d = r.distance
        lines.append(
            f"{r.name:<12} {d.kl:>8.4f} {d.agreement:>7.1%} {d.perplexity:>11.2f} "
            f"{f'{r.right}/{r.asked}':>11} {r.bytes / 2**20:>6.0f} MiB {r.tokens_per_second:>9.1f}"
        )
    return "\n".join(lines)
