"""Many rows: tokens per second beside transformers, llama.cpp, and the matrix products' limit.

    python benchmarks/engine.py [--peers DIR] [--rows N] [--tokens T] [CASE ...]

Cases: rollouts (a prompt of 200 tokens, N samples of T tokens), tree (many prefixes of one text, as
Pivotal Token Search asks them, against as many prompts of the same lengths with nothing in common),
few (steps of few rows through the kernels, and through packed products), invariant (what the
promise of the same bits costs), speculate (one stream of the real SmolLM2, copying and in prose,
with and without guesses; greedy). Weights are otherwise random, of SmolLM2-135M's shape, bfloat16.
DIR has node-llama-cpp installed; it decodes greedily, and only its decoding is counted, not its
prompts. Ours is `LocalEngine.generate` with all it does, packing too.
Everything alternates within one run; the table has medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import shapes
import torch
from tables import row, table
from transformers import LlamaConfig, LlamaForCausalLM

from phikit.chat.format import chat_format
from phikit.chat.load import load_tokenizer
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.native import products
from phikit.engine.native.runner import NativeRunner
from phikit.engine.packed import Product, packed
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme
from phikit.engine.runner import Piece, Rows
from phikit.fetch import resolve
from phikit.memory import keep_freed_memory
from phikit.models.decoder import Decoder
from phikit.models.family import config
from phikit.models.load import load

_HERE = Path(__file__).parent
_PROMPT = 200
_TREE = (16, 8, 8)  # prefixes, tokens between two of them, samples of each
_FEW = (1, 4, 8, 16)


def product_rate(rows: int) -> float:
    """bfloat16 FLOP/s of a large matrix product: the faster one of 1024 rows, and of so many rows
    with weights that are laid out for it."""
    layer = torch.nn.Linear(2048, 2048, bias=False).bfloat16()

    def rate(product: Product, m: int) -> float:
        x, count = torch.randn(m, 2048).bfloat16(), 0
        product(x)
        start = time.perf_counter()
        while time.perf_counter() - start < 0.2:
            product(x)
            count += 1
        return 2 * m * 2048 * 2048 * count / (time.perf_counter() - start)

    with torch.inference_mode():
        return max(rate(layer, 1024), rate(packed(layer, rows), rows))


def theirs(shape: Any) -> LlamaForCausalLM:
    """transformers' model of the same shape."""
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim, tie_word_embeddings=shape.tied, rms_norm_eps=shape.norm_eps,
            max_position_embeddings=shape.max_positions, eos_token_id=None,
        )
    )  # fmt: skip
    return made.to(torch.bfloat16).eval()


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def generate(model: LlamaForCausalLM, prompt: tuple[int, ...], rows: int, tokens: int) -> None:
    with torch.inference_mode():
        model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=True, temperature=1.0, top_k=0, num_return_sequences=rows,
            max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip


@contextmanager
def llama_cpp(peers: Path | None, shape: Any, rows: int, tokens: int) -> Iterator[Any]:
    """A function that gives the seconds in which llama.cpp decodes; None when it is not there."""
    if peers is None:
        yield None
        return
    path = (peers / "random-smollm2-many-BF16.gguf").resolve()
    shapes.write_gguf(path, shape, "BF16")
    process = subprocess.Popen(
        ["node", str(_HERE / "llama_cpp_many.mjs"), str(path), str(torch.get_num_threads()),
         str(_PROMPT + tokens + 16), str(rows)],
        cwd=peers, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        json.loads(process.stdout.readline())

        def measure() -> float:
            process.stdin.write(json.dumps({"prompt": _PROMPT, "tokens": tokens}) + "\n")
            process.stdin.flush()
            return float(json.loads(process.stdout.readline())["decode"])

        yield measure
    finally:
        process.terminate()
        process.wait()
        path.unlink()


def rollouts(model: Decoder, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows, tokens = options.rows, options.tokens
    prompt = tuple(100 + i * 37 % 9000 for i in range(_PROMPT))
    sampling = Sampling(temperature=1.0, max_tokens=tokens)
    engine, other = LocalEngine(model, max_batch=rows), theirs(model.config)
    generate(other, prompt, rows, 2)
    collect(engine, [Request(prompt, Sampling(max_tokens=2), n=rows)])
    peer_tokens = min(tokens, 8)  # its decoding is even, and slow
    rates, mine, hf, cpp = [], [], [], []
    with llama_cpp(options.peers, model.config, rows, peer_tokens) as llama:
        for _ in range(options.rounds):
            rates.append(product_rate(rows))
            mine.append(seconds(lambda: collect(engine, [Request(prompt, sampling, n=rows)])))
            hf.append(seconds(lambda: generate(other, prompt, rows, tokens)))
            if llama:
                cpp.append(llama())
        rates.append(product_rate(rows))
    speed, peer = rows * tokens / median(mine), rows * tokens / median(hf)
    work = 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    name = f"{rows} rollouts x {tokens}, prefix {_PROMPT}: tokens/s"
    found = [row(f"{name}, transformers", speed, peer, speed / peer, 4.0)]
    limit = median(rates) / work
    found.append(
        row(f"{name}, limit of {median(rates) / 1e9:.0f} GFLOP/s", speed, limit, speed / limit, 0.4)
    )
    if cpp:
        peer = rows * peer_tokens / median(cpp)
        found.append(row(f"{name}, llama.cpp BF16", speed, peer, speed / peer, 10.0))
    return found


def tree(model: Decoder, options: argparse.Namespace) -> list[dict[str, Any]]:
    count, apart, n = _TREE
    tokens = min(32, options.tokens)
    text = [100 + i * 37 % 9000 for i in range(_PROMPT + count * apart)]
    sampling = Sampling(temperature=1.0, max_tokens=tokens)
    lengths = [_PROMPT + i * apart for i in range(count)]
    shared = [Request(tuple(text[:k]), sampling, n=n, seed=i) for i, k in enumerate(lengths)]
    alone = [
        Request((10000 + len(lengths) * j + i, *text[1:k]), sampling, seed=i)
        for i, k in enumerate(lengths)
        for j in range(n)
    ]
    engine = LocalEngine(model, max_batch=count * n)
    mine, other = [], []
    for _ in range(options.rounds):
        mine.append(seconds(lambda: collect(engine, shared)))
        other.append(seconds(lambda: collect(engine, alone)))
    total = count * n * tokens
    a, b = total / median(mine), total / median(other)
    return [row(f"{count} prefixes x {n} x {tokens}: tokens/s, nothing shared", a, b, a / b, None)]


def few(model: Decoder, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps of few rows: all in one call of C, against packed products."""
    found = []
    for rows in _FEW:
        runner = NativeRunner(model, pack=rows)
        runner.allocate(16 * rows + 1)
        table = np.arange(1, 16 * rows + 1).reshape(rows, 16)
        with torch.inference_mode():
            runner.prefill([Piece(list(range(100, 300)), 0, line.tolist()) for line in table])
        step = Rows(
            np.full(rows, 7), np.full(rows, 200), table, np.zeros(rows, np.int64),
            np.full(rows, -1),
        )  # fmt: skip
        times: dict[int, list[float]] = {products.MOST_ROWS: [], 0: []}
        for _ in range(12):
            for border, taken in times.items():
                runner.most_rows = border
                with torch.inference_mode():
                    taken.append(seconds(partial(runner.step, step)))
        a, b = (rows / median(t[2:]) for t in times.values())
        found.append(row(f"{rows} rows: tokens/s in C, packed products", a, b, a / b, None))
    return found


def invariant(model: Decoder, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the same bits whatever else is in the batch cost: many rollouts, and one."""
    prompt, found = tuple(100 + i * 37 % 9000 for i in range(_PROMPT)), []
    for rows, tokens in ((options.rows, options.tokens), (1, min(64, options.tokens))):
        request = Request(prompt, Sampling(temperature=1.0, max_tokens=tokens), n=rows)
        engines = [LocalEngine(model, max_batch=rows, invariant=i) for i in (True, False)]
        times: list[list[float]] = [[], []]
        for engine in engines:
            collect(engine, [Request(prompt, Sampling(max_tokens=2), n=rows)])
        for _ in range(options.rounds):
            for engine, taken in zip(engines, times, strict=True):
                taken.append(seconds(partial(collect, engine, [request])))
        a, b = (rows * tokens / median(t) for t in times)
        found.append(row(f"{rows} x {tokens}: tokens/s invariant, ordinary", a, b, a / b, None))
    return found


_TEXT = (
    "The lighthouse keeper, whose name was Anders Holm, wrote down the weather at six, at noon and "
    "at nine in the evening. On the third of March the glass fell by eleven millimetres, the wind "
    "went round to the north-east, and by four o'clock nobody could see the harbour any more."
)
_TASKS = {
    "copying": f"Repeat this text word for word, and then repeat it once more:\n\n{_TEXT}",
    "prose": "Explain in your own words why the sea is salty and the rivers are not.",
}


def speculate(_: Decoder, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One stream of SmolLM2: guesses from the text, and by its own weights in 4 bits."""
    directory = resolve("smollm2", say=print)
    model, form = load(directory), chat_format(load_tokenizer(directory))
    assert isinstance(model, Decoder)
    small = load(directory)
    for name, layer in list(small.named_modules()):
        if type(layer) is torch.nn.Linear and ".layers." in name:
            parent, _dot, leaf = name.rpartition(".")
            packed_layer = QuantLinear.of(layer.weight.detach(), Scheme("int4", 32))
            setattr(small.get_submodule(parent), leaf, packed_layer)
    found = []
    for task, text in _TASKS.items():
        ids = form.render([{"role": "user", "content": text}], generation_prompt=True).ids
        request = Request(tuple(ids), Sampling(temperature=0, max_tokens=options.tokens))
        engines = {
            name: LocalEngine(model, speculate=how)
            for name, how in (("off", ""), ("look-up", "lookup"), ("its int4 self", small))
        }
        times: dict[str, list[float]] = {name: [] for name in engines}
        for _round in range(options.rounds + 1):
            for name, engine in engines.items():
                times[name].append(seconds(partial(collect, engine, [request])))
        for name, engine in list(engines.items())[1:]:
            a, b = (options.tokens / median(times[n][1:]) for n in (name, "off"))
            rate = engine.accepted / max(1, engine.guessed)
            title = f"{task}, guesses by {name} ({rate:.0%} right): tokens/s, without"
            found.append(row(title, a, b, a / b, None))
    return found


CASES = {
    "rollouts": rollouts, "tree": tree, "few": few, "invariant": invariant, "speculate": speculate,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    options = parser.parse_args()
    if strange := [name for name in options.cases if name not in CASES]:
        parser.error(f"no case {strange[0]}; there are {', '.join(CASES)}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `phikit generate`, `chat` and `serve` do
    model = shapes.model(config("smollm2"), "bf16")
    rows: list[dict[str, Any]] = []
    for name in options.cases or CASES:
        found = CASES[name](model, options)
        print(table(found), flush=True)
        rows += found
    print(table(rows))
    print(json.dumps({"bench": "engine", "rows": rows}))


if __name__ == "__main__":
    main()
