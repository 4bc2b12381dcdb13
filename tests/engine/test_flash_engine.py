"""phi-4-mini-flash through the scheduler: the forward pass's tokens and log-probabilities, whatever
joins, leaves, forks, waits or is cut into chunks."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from crowd import Crowd
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from flash_fixtures import CONFIG, made, random_ids

from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import train_bpe
from phikit.engine import flash
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.flash import FlashRunner
from phikit.engine.kept import MOST_KEPT
from phikit.engine.local import LocalEngine
from phikit.engine.scheduler import Scheduler
from phikit.engine.talk import Conversation
from phikit.errors import PhikitError
from phikit.models.checkpoint import save
from phikit.models.flash.model import Flash

MODEL = made(torch.float32)
WORDS = [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (1, 2, 3, 4, 5, 6, 20, 21), (1, 2, 3, 4), (30,)]


def request_of(draw):
    prompt = list(draw.choice(WORDS)) + draw.choices(range(40, 44), k=draw.randint(0, 30))
    return Request(
        tuple(prompt), Sampling(max_tokens=draw.randint(1, 12)), n=draw.randint(1, 5),
        seed=draw.randint(0, 9),
    )  # fmt: skip


def scheduler_of(size=4, blocks=400, max_rows=64, **options):
    runner = FlashRunner(MODEL, block_size=size)
    room = (max_rows + MOST_KEPT) * runner.states.bytes_per_slot
    bound = room + blocks * runner.block_bytes
    return Scheduler(runner, cache_bytes=bound, max_rows=max_rows, **options)


def drain(scheduler):
    found = {}
    while scheduler.busy:
        for done in scheduler.step().finished:
            found[done.ticket.number, done.sample] = done.rollout
    return found


def assert_forward(rollout):
    """The drawn tokens' log-probabilities are those of one forward pass over all of them."""
    ids = torch.tensor([*rollout.prompt_ids, *rollout.completion_ids])
    with torch.no_grad():
        logprobs = MODEL(ids[None])[0].log_softmax(-1)
    start = len(rollout.prompt_ids)
    expected = logprobs[start - 1 : -1].gather(1, ids[start:, None]).squeeze(1)
    assert rollout.raw_logprobs == pytest.approx(expected.tolist(), abs=1e-5, rel=1e-5)
    assert (torch.tensor(rollout.raw_logprobs) - expected).abs().mean() < 1e-5


# the same draws every time: once in some two thousand tokens float32's own rounding is 2.2e-5
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([2, 3, 8]),
    blocks=st.integers(0, 40),
    rows=st.integers(1, 12),
    budget=st.sampled_from([1, 5, 64]),
    keep=st.booleans(),
)
def test_whatever_happens_samples_are_those_of_the_forward_pass(
    seed, size, blocks, rows, budget, keep
):
    draw = random.Random(seed)
    todo = [request_of(draw) for _ in range(draw.randint(1, 12))]
    need = -(-(max(len(r.prompt_ids) + r.sampling.max_tokens for r in todo)) // size)
    scheduler = scheduler_of(size, need + blocks, rows, prefill_tokens=budget, keep=keep)
    crowd = Crowd(scheduler, todo, draw)
    for index, request in enumerate(todo):
        if index in crowd.cancelled:
            continue
        expected = collect(LocalEngine(MODEL, max_batch=8), [request])[0]
        got = crowd.rollouts(index)
        assert [r.completion_ids for r in got] == [r.completion_ids for r in expected]
        for rollout in got:
            assert_forward(rollout)
    stats = scheduler.stats()
    assert (stats.used, stats.waiting, stats.entering, stats.running) == (0, 0, 0, 0)
    scheduler.clear_cache()
    assert scheduler.blocks.used == 0
    assert scheduler.runner.states.free == rows + MOST_KEPT


def test_greedy_tokens_are_those_of_full_forward_passes():
    prompt = tuple(random_ids(1, 11)[0].tolist())
    [drawn] = collect(LocalEngine(MODEL), [Request(prompt, Sampling(0, max_tokens=30))])[0]
    ids = list(prompt)
    for token in drawn.completion_ids:
        with torch.no_grad():
            assert int(MODEL(torch.tensor([ids]))[0, -1].argmax()) == token
        ids.append(token)
    assert len(ids) == 41


def test_samples_of_a_prompt_fork_its_state_and_share_its_blocks(monkeypatch):
    prompt = tuple(random_ids(1, 33)[0].tolist())
    scheduler = scheduler_of(max_rows=6)
    scheduler.submit(Request(prompt, Sampling(max_tokens=9), n=16))
    scheduler.step()
    assert scheduler.runner.prefilled == 32
    tables = scheduler.rows.table[:6, :8]
    assert (tables == tables[0]).all() and scheduler.stats().used == 8 + 6
    assert len(set(scheduler.rows.state[:6].tolist())) == 6
    found = drain(scheduler)  # the last ten enter long after the first ones have moved on
    assert scheduler.runner.prefilled == 32 and len(found) == 16
    for rollout in found.values():
        assert_forward(rollout)


def test_a_conversation_goes_on_where_it_ended():
    scheduler = scheduler_of(max_rows=4)
    first = scheduler.submit(Request((1, 2, 3), Sampling(max_tokens=20)))
    said = drain(scheduler)[first.number, 0].completion_ids
    before = scheduler.stats()
    more = scheduler.submit(Request((1, 2, 3, *said, 5), Sampling(max_tokens=5)))
    assert_forward(drain(scheduler)[more.number, 0])
    after = scheduler.stats()
    assert after.prefilled - before.prefilled == 1  # the last token said was never fed
    assert after.reused - before.reused == 22


def test_prompts_of_any_lengths_are_computed_together(monkeypatch):
    groups = []
    inner = FlashRunner._prefill_group
    monkeypatch.setattr(
        FlashRunner,
        "_prefill_group",
        lambda self, group: (groups.append(group), inner(self, group)),
    )
    monkeypatch.setattr(flash, "_TOGETHER", 64)
    scheduler = scheduler_of(max_rows=8)
    for length in (3, 29, 11, 30, 7, 2):
        ids = tuple(random_ids(1, length, seed=length)[0].tolist())
        scheduler.submit(Request(ids, Sampling(max_tokens=4)))
    for rollout in drain(scheduler).values():
        assert_forward(rollout)
    assert [len(g) for g in groups] == [2, 4]


def test_too_little_memory_is_said_with_the_numbers():
    runner = FlashRunner(MODEL)
    with pytest.raises(PhikitError, match=r"no block beside \d+ bytes for the states of 64 rows"):
        Scheduler(runner, cache_bytes=64 * runner.states.bytes_per_slot)


def test_the_draws_are_batched_in_bfloat16_too():
    model = made(torch.bfloat16)
    todo = [Request((1, 2, i), Sampling(max_tokens=12), n=3, seed=i) for i in range(4)]
    for rollout in (r for group in collect(LocalEngine(model), todo) for r in group):
        ids = torch.tensor([*rollout.prompt_ids, *rollout.completion_ids])
        with torch.no_grad():
            logprobs = model(ids[None])[0].float().log_softmax(-1)
        expected = logprobs[2:-1].gather(1, ids[3:, None]).squeeze(1)
        apart = (torch.tensor(rollout.raw_logprobs) - expected).abs()
        assert apart.mean() < 0.1


def test_one_can_talk_with_a_flash_directory(tmp_path):
    tokenizer = train_bpe(["the cat sat on the mat"] * 3, 300, NANO_SPECIAL)
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size, max_positions=96)
    model = Flash(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, tmp_path)
    tokenizer.save(tmp_path)
    talk = Conversation(tmp_path)
    assert isinstance(talk.model, Flash)
    text = "".join(talk.reply("the cat"))
    assert text == talk.messages[-1]["content"] and text
    assert "".join(Conversation(tmp_path).reply("the cat")) == text
