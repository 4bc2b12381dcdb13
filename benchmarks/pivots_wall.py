"""How long Pivotal Token Search takes beside a plain loop over transformers, on a real model.

Both search the same solutions of the same questions, of which the model solves 0.2 to 0.8:

- *theirs*: the report's algorithm (Figure 4), n rollouts at every prefix it visits, in one call of
  `generate` each (`num_return_sequences=n`, KV cache, bfloat16), prefixes as token ids, estimates
  remembered, equal answers verified once. n = 400 is what it takes to get to about 2 % to 8 % false
  pivots (benchmarks/pivots.py), which ours is held to by its tests;
- *ours*: `search` on the local engine, all questions in flight, looking where the report looks
  (where the ends of a stretch differ), everything else at its defaults.

Theirs is slow, so it takes a random part of the questions, each one whole. Ours takes all, since to
have many in flight is how it fills the engine; its time for the part is its whole time by the share
of tokens that it sampled for it. The two alternate, and the processor's time is measured besides
the clock's, because other work on the machine slows both.

    python benchmarks/pivots_wall.py [--model DIR] [--questions 16] [--theirs 2] [--n 400]
    python benchmarks/pivots_wall.py --model runs/nano/08-sft/model --verifier math \\
        --instruction "" --max-tokens 100
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from phikit import fetch
from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.load import load_tokenizer
from phikit.engine.base import Request, collect
from phikit.engine.load import load
from phikit.engine.local import LocalEngine
from phikit.memory import keep_freed_memory
from phikit.pivots.config import SearchConfig
from phikit.pivots.path import Path
from phikit.pivots.question import Drawn
from phikit.pivots.results import SearchResult, Trace
from phikit.pivots.search import Question, search
from phikit.synth.teacher import Order, ProceduralTeacher
from phikit.verify.base import ByName, Problem
from pivots import subdivide

KINDS = ("changes", "groups", "shopping", "equations")
FILTER = 16  # rollouts by which a question is chosen


@dataclass
class Spent:
    """One search's clock and processor seconds, sampled tokens, pivots as (question, position)."""

    clock: float = 0.0
    processor: float = 0.0
    tokens: int = 0
    found: list[tuple[str, int]] = field(default_factory=list)


def timed(spent: Spent, run: Callable[[], Any]) -> Any:
    clock, processor = time.perf_counter(), time.process_time()
    result = run()
    spent.clock += time.perf_counter() - clock
    spent.processor += time.process_time() - processor
    return result


# --- The questions -------------------------------------------------------------------------------


def problems(count: int, seed: int, verifier: str, instruction: str) -> list[Problem]:
    teacher = ProceduralTeacher()
    orders = [Order(KINDS[i % len(KINDS)], f"wall/{seed}", i, 1, "short", False)
              for i in range(count)]  # fmt: skip
    made = [c.sample() for c in teacher.write(orders) if c is not None]
    problems = [Problem.of(replace(s, verifier=verifier)) for s in made if s.verifier == "math"]
    return [replace(p, prompt=f"{p.prompt}\n{instruction}".strip()) for p in problems]


def chosen(
    engine: LocalEngine,
    chat: ChatFormat,
    config: SearchConfig,
    asked: Sequence[Problem],
    wanted: int,
    seed: int,
) -> list[Question]:
    """Questions with a success rate in [low, high] over some rollouts, and a solution of each."""
    found: list[Question] = []
    print(f"choosing {wanted} questions", flush=True)
    for start in range(0, len(asked), 32):
        some = asked[start : start + 32]
        messages = [[{"role": "user", "content": p.prompt}] for p in some]
        prompts = [tuple(chat.render(m, generation_prompt=True).ids) for m in messages]
        sampling = config.sampling(chat.stop_ids, 0)
        groups = collect(engine, [Request(ids, sampling, FILTER, seed) for ids in prompts])
        for problem, ids, group in zip(some, prompts, groups, strict=True):
            texts = [(problem, chat.text(r.completion_ids)) for r in group]
            passed = [v.passed for v in ByName().verify(texts)]
            if config.low <= sum(passed) / FILTER <= config.high and len(found) < wanted:
                first = group[0]
                drawn = Drawn(first.completion_ids, first.logprobs, first.raw_logprobs, passed[0])
                found.append(Question(problem, ids, drawn))
        if len(found) == wanted:
            break
    return found


# --- Ours ----------------------------------------------------------------------------------------


def ours(
    engine: LocalEngine,
    chat: ChatFormat,
    config: SearchConfig,
    questions: Sequence[Question],
    seed: int,
) -> tuple[Spent, dict[str, int]]:
    """The search of all questions, and the tokens it sampled for each."""
    spent, tokens = Spent(), dict[str, int]()

    def keep(trace: Trace) -> None:
        tokens[trace.problem] = trace.tokens

    def run() -> SearchResult:
        return search(
            engine, ByName(), questions, chat.text, config, stop_ids=chat.stop_ids, seed=seed,
            on_search=keep,
        )  # fmt: skip

    result: SearchResult = timed(spent, run)
    spent.tokens = result.totals.tokens
    spent.found = [(p.problem, p.position) for p in result.pivots]
    return spent, tokens


# --- Theirs --------------------------------------------------------------------------------------


class Plain:
    """p at the positions of one solution, by n rollouts each."""

    def __init__(
        self, model: Any, chat: ChatFormat, config: SearchConfig, question: Question, n: int
    ) -> None:
        assert question.solution is not None
        self.model, self.chat, self.config, self.n = model, chat, config, n
        self.question, self.solution = question, question.solution
        self.tokens, self.visits = 0, 0
        self.memory = {len(self.solution.ids): float(self.solution.passed)}
        self.verdicts: dict[str, bool] = {}

    def __call__(self, position: int) -> float:
        if position not in self.memory:
            self.visits += 1
            self.memory[position] = self._estimate(self.solution.ids[:position])
        return self.memory[position]

    def _estimate(self, prefix: tuple[int, ...]) -> float:
        given = torch.tensor([[*self.question.prompt_ids, *prefix]])
        with torch.inference_mode():
            out = self.model.generate(
                given, attention_mask=torch.ones_like(given), do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, max_new_tokens=self.config.max_tokens - len(prefix),
                num_return_sequences=self.n, eos_token_id=list(self.chat.stop_ids),
                pad_token_id=self.chat.stop_ids[0],
            )  # fmt: skip
        texts = []
        for row in out[:, given.shape[1] :].tolist():
            ends = [i for i, token in enumerate(row) if token in self.chat.stop_ids]
            row = row[: ends[0] + 1] if ends else row
            self.tokens += len(row)
            texts.append(self.chat.text((*prefix, *row)))
        new = sorted(set(texts) - self.verdicts.keys())
        judged = ByName().verify([(self.question.problem, text) for text in new])
        self.verdicts |= {text: v.passed for text, v in zip(new, judged, strict=True)}
        return sum(self.verdicts[text] for text in texts) / len(texts)


def theirs(model: Any, chat: ChatFormat, config: SearchConfig, question: Question, n: int) -> Spent:
    spent = Spent()
    estimate = Plain(model, chat, config, question, n)
    s = estimate.solution
    path = Path(s.ids, s.logprobs, s.raw_logprobs, s.passed)
    places = timed(spent, lambda: subdivide(path, estimate))
    spent.tokens = estimate.tokens
    spent.found = [(question.problem.id, i) for i in places]
    rate = spent.tokens / spent.clock
    print(f"  theirs: {len(s.ids)} tokens, {estimate.visits} prefixes × {n} rollouts, "
          f"{spent.clock:.0f} s, {rate:.0f} tokens/s", flush=True)  # fmt: skip
    return spent


# --- One run -------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--questions", type=int, default=16, help="that ours searches")
    parser.add_argument("--verifier", default="number", help="math, for a model that keeps to it")
    parser.add_argument("--instruction", default="Answer with the number alone.",
                        help="added to each; short answers keep theirs affordable")  # fmt: skip
    parser.add_argument("--theirs", type=int, default=2, help="of them, that theirs searches")
    parser.add_argument("--n", type=int, default=400, help="rollouts of theirs at each prefix")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=128, help="rows of ours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the program does
    torch.manual_seed(options.seed)
    directory = FilePath(fetch.resolve(options.model, say=print))
    engine = LocalEngine(load(directory, torch.bfloat16), max_batch=options.batch)
    chat = chat_format(load_tokenizer(directory))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    config = SearchConfig(look="ends", max_tokens=options.max_tokens, in_flight=options.questions)
    asked = problems(40 * options.questions, options.seed, options.verifier, options.instruction)
    questions = chosen(engine, chat, config, asked, options.questions, options.seed)
    part = random.Random(options.seed).sample(questions, options.theirs)
    print(f"{len(questions)} questions, of them {len(part)} for theirs", flush=True)
    own: list[tuple[Spent, float]] = []
    peer: list[Spent] = []
    for i, question in enumerate(part):
        spent, tokens = ours(engine, chat, config, questions, options.seed + i)
        share = sum(tokens[q.problem.id] for q in part) / spent.tokens
        own.append((spent, share))
        print(f"  ours: {len(questions)} questions in {spent.clock:.1f} s, "
              f"{spent.tokens / spent.clock:.0f} tokens/s, {share:.0%} of them for the part",
              flush=True)  # fmt: skip
        peer.append(theirs(model, chat, config, question, options.n))
    report(own, peer, {q.problem.id for q in part})


def report(own: Sequence[tuple[Spent, float]], peer: Sequence[Spent], part: set[str]) -> None:
    rows = []
    measures: list[tuple[str, Callable[[Spent], float]]] = [
        ("seconds", lambda s: s.clock),
        ("processor seconds", lambda s: s.processor),
        ("tokens", lambda s: s.tokens),
    ]
    print(f"\na question:{'':12}{'ours':>12}{'theirs':>12}{'ratio':>9}")
    for name, of in measures:
        mine = median(of(s) * share for s, share in own) / len(part)
        other = sum(of(s) for s in peer) / len(peer)
        print(f"{name:<23}{mine:>12,.1f}{other:>12,.1f}{other / mine:>9.1f}")
        goal = 20.0 if name == "seconds" else None
        rows.append({"name": f"{name} a question", "ours": round(mine, 2),
                     "peer": round(other, 2), "ratio": round(other / mine, 2), "goal": goal,
                     "met": other / mine >= goal if goal else None})  # fmt: skip
    found = sorted({f for s, _ in own[:1] for f in s.found if f[0] in part})
    told = sorted({f for s in peer for f in s.found})
    print(f"pivots of the part: ours {len(found)}, theirs {len(told)}, "
          f"both {len(set(found) & set(told))}")  # fmt: skip
    print(json.dumps({"bench": "pivots-wall", "rows": rows}))


if __name__ == "__main__":
    main()
