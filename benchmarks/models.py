"""The decoders' speed beside transformers': 4 layers at real widths, bf16, forward and backward.

Both sides compute on the very same weights, in one process, turn by turn; a row's ratio is the
median over the rounds of peer's time / our time. Beside each time stands the rate of its matrix
products as a share of the machine's, which is measured in the same rounds by one large product: no
model can be faster than that, so 1 / (the peer's share) bounds every ratio.

    python benchmarks/models.py [--tokens 256] [--rounds 5] [--models phi-4-mini,phi-4]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig, to_hf
from phikit.models.family import config

LAYERS, VOCAB = 4, 1024  # the embedding and the head are not what is measured
#: our mode, the peer's mode, goal of the ratio
PAIRS = (("eager", "eager", 1.0), ("compiled", "eager", 1.3), ("compiled", "compiled", 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="phi-4-mini,phi-4")
    asked = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, {asked.tokens} tokens, {LAYERS} layers, bf16\n")
    print(f"{'':34}{'ms':>9}{'of the products` peak':>24}".replace("`", "'"))
    rows: list[dict[str, Any]] = []
    for name in asked.models.split(","):
        rows += measure(name, asked.tokens, asked.rounds)
        gc.collect()
    print(f"\n{'ours / theirs':34}{'ratio':>9}{'goal':>8}{'bound':>8}")
    for row in rows:
        verdict = "" if row["met"] else "   not met"
        print(
            f"{row['name']:34}{row['ratio']:>8.2f}×{row['goal']:>7.1f}×{row['bound']:>7.2f}×"
            f"{verdict}"
        )
    print(json.dumps({"bench": "models", "rows": rows}))


def measure(name: str, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """All rows of one model; its weights are freed on return."""
    full = config(name)
    shape = replace(full, layers=LAYERS, vocab_size=VOCAB, bos_id=0, eos_ids=(0,), pad_id=0)
    ours, theirs = both(shape)
    ids_1L = torch.randint(1, VOCAB, (1, tokens))
    agree(ours, theirs, ids_1L)
    models: dict[str, Callable[[], torch.Tensor]] = {}
    for mode in ("eager", "compiled"):
        mine, other = (ours, theirs) if mode == "eager" else map(torch.compile, (ours, theirs))
        models[f"ours {mode}"] = lambda m=mine: m(ids_1L, rope_length=tokens)
        models[f"transformers {mode}"] = lambda m=other: m(ids_1L, use_cache=False).logits
    times, peak = interleaved(models, list(ours.parameters()), shape, tokens, rounds)
    rows = []
    for work in ("forward", "forward+backward"):
        operations = (3 if "back" in work else 1) * tokens * shape.flops_per_token(tokens // 2)
        shares = {}
        for side in models:
            took = statistics.median(times[side, work])
            shares[side] = operations / took / peak
            print(f"{name + ' ' + work + ', ' + side:48}{took * 1e3:9.0f}{shares[side]:12.0%}")
        for mine, other, goal in PAIRS:
            a, b = times[f"ours {mine}", work], times[f"transformers {other}", work]
            ratio = statistics.median(y / x for x, y in zip(a, b, strict=True))
            rows.append(
                {
                    "name": f"{name} {work}: {mine} / {other}",
                    "ours": statistics.median(a), "peer": statistics.median(b),
                    "ratio": ratio, "goal": goal, "met": ratio >= goal,
                    "bound": 1 / shares[f"transformers {other}"],
                }
            )  # fmt: skip
    print(f"{name} products' peak: {peak / 1e9:.0f} GFLOP/s")
    torch.compiler.reset()
    return rows


def both(shape: DecoderConfig) -> tuple[Decoder, Any]:
    """Our decoder and transformers' on the same parameters."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    with torch.device("meta"):
        ours = Decoder(shape)
    ours = ours.bfloat16().to_empty(device="cpu")
    if shape.tied:
        ours.lm_head.weight = ours.model.embed_tokens.weight
    ours.init_weights(torch.Generator().manual_seed(0))
    raw = transformers.Phi3Config(**to_hf(shape))
    with torch.device("meta"):
        theirs = transformers.Phi3ForCausalLM(raw).bfloat16()
    theirs.load_state_dict(ours.state_dict(keep_vars=True), assign=True)
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(raw)  # its tables are not in the state
    theirs.tie_weights()
    return ours.train(), theirs.train()


@torch.no_grad()
def agree(ours: Decoder, theirs: Any, ids_1L: torch.Tensor) -> None:
    """Stops when the two do not compute the same: a fast wrong model is no model."""
    a, b = ours(ids_1L).float(), theirs(ids_1L, use_cache=False).logits.float()
    difference = float((a - b).norm() / b.norm())
    assert difference < 0.03, f"the logits differ by {difference:.1%}"


def interleaved(
    models: dict[str, Callable[[], torch.Tensor]],
    parameters: list[torch.nn.Parameter],
    shape: DecoderConfig,
    tokens: int,
    rounds: int,
) -> tuple[dict[tuple[str, str], list[float]], float]:
    """Seconds of every side and work in every round, and the best product rate seen."""
    times: dict[tuple[str, str], list[float]] = {}
    d, f = shape.hidden_size, 2 * shape.intermediate_size
    x, w = torch.randn(2048, d).bfloat16(), torch.randn(f, d).bfloat16()
    rates = []
    for turn in range(rounds + 1):  # the first compiles and warms up
        for work in ("forward", "forward+backward"):
            for side, call in models.items():
                start = time.perf_counter()
                if work == "forward":
                    with torch.no_grad():
                        call()
                else:
                    call().float().logsumexp(-1).sum().backward()
                if turn:
                    times.setdefault((side, work), []).append(time.perf_counter() - start)
                for parameter in parameters:
                    parameter.grad = None
        start = time.perf_counter()
        torch.mm(x, w.T)
        rates.append(2 * 2048 * d * f / (time.perf_counter() - start))
    return times, max(rates)


if __name__ == "__main__":
    main()
