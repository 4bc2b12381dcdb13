"""Verified answers as training data, hard problems again, and what a recipe begins with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from train_fixtures import SPECIAL, tiny_model
from train_runs import grpo

from phikit.chat.format import chat_format
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.errors import PhikitError
from phikit.models import checkpoint
from phikit.models.decoder_config import DecoderConfig
from phikit.records import Document, Pair, Rollout, Sample, Verdict, read_records, write_records
from phikit.stage import Context
from phikit.train.models import new_model
from phikit.train.objectives.next_token import NextToken, cut, without_padding
from phikit.train.stage_rollouts import right_answers, rollout_pairs
from phikit.train.stages import STAGES

New = Callable[..., Context]
BY_VERB = {stage.verb: stage for stage in STAGES}


def answer(n: int, right: bool, problem: str = "p", finish: str = "stop") -> Rollout:
    return Rollout(
        prompt_ids=(1, 2), completion_ids=tuple(range(3, 3 + n)), logprobs=(0.0,) * n,
        finish=finish, meta={"problem": problem},
        verdict=Verdict(passed=right, score=float(right), reason="", verifier="exact"),
    )  # fmt: skip


def test_pairs_are_right_over_wrong_and_of_like_length() -> None:
    group = [
        answer(4, True),
        answer(9, True),
        answer(30, False),
        answer(8, False),
        answer(5, False),
    ]
    found = rollout_pairs(group, 5, 2.0)
    assert [(len(p.chosen_ids), len(p.rejected_ids)) for p in found] == [(4, 5), (9, 8)]
    assert all(p.kind == "rollout" and len(p.parents) == 2 for p in found)
    assert len(rollout_pairs(group, 1, 2.0)) == 1
    assert rollout_pairs([answer(4, True, finish="length"), answer(4, False)], 2, 2.0) == []
    assert rollout_pairs([answer(4, True), answer(40, False)], 2, 2.0) == []


def test_what_is_distilled() -> None:
    easy = [answer(4, True, "easy"), answer(5, True, "easy"), answer(5, True, "easy")]
    hard = [answer(6, True, "hard"), answer(7, False, "hard"), answer(8, True, "hard", "length")]
    kept = right_answers([*easy, *hard], 1.0)
    assert [len(r.completion_ids) for r in kept] == [4, 5, 6]
    assert [len(r.completion_ids) for r in right_answers([*easy, *hard], 0.7)] == [6]


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A tiny model with a chat tokenizer, problems it can be asked, and some text."""
    texts = [f"What is {i} and {i}? Answer: {2 * i}" for i in range(40)]
    tokenizer = train_bpe(texts, 300, SPECIAL)
    ends = (tokenizer.special["<|im_end|>"],)
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, layers=2, heads=2,
        kv_heads=1, head_dim=16, max_positions=96, tied=True, eos_ids=ends,
    )  # fmt: skip
    folder = tmp_path / "start"
    checkpoint.save(new_model(config, 0), folder / "model")
    tokenizer.save(folder / "model")
    problems = [
        Sample(kind="sum", source="synthetic", verifier="exact", answer=str(2 * i),
               messages=({"role": "user", "content": f"What is {i} and {i}?"},))
        for i in range(6)
    ]  # fmt: skip
    write_records(folder / "samples.parquet", problems, Sample)
    documents = [Document(text=t, source="web") for t in texts]
    write_records(folder / "documents.parquet", documents, Document)
    return folder


def run(verb: str, ctx: Context, settings: dict[str, object], **inputs: Path) -> dict[str, object]:
    stage = BY_VERB[verb]
    return stage.run(ctx, stage.config(**settings), inputs)


def test_from_rollouts_to_a_distilled_model(start: Path, new_context: New) -> None:
    drawn = new_context("drawn")
    made = run("train.rollouts", drawn, {"group": 3, "max_tokens": 8}, model=start, problems=start)
    rollouts = read_records(drawn.dir / "rollouts.parquet", Rollout)
    assert made["rollouts"] == len(rollouts) == 18
    assert all(r.verdict is not None for r in rollouts)
    assert len({r.meta["problem"] for r in rollouts}) == 6
    assert read_records(drawn.dir / "pairs.parquet", Pair) == []  # it answers nothing rightly
    with pytest.raises(PhikitError, match="none of 18 answers is right"):
        run("train.distill", new_context("none"), {}, **{"model": start, "rollouts.0": drawn.dir})
    chat = chat_format(Tokenizer.load(start / "model"))
    right = [
        Rollout(
            prompt_ids=r.prompt_ids, completion_ids=(*range(40, 45), chat.stop_ids[0]),
            logprobs=(0.0,) * 6, meta=r.meta, finish="stop",
            verdict=Verdict(passed=True, score=1.0, reason="", verifier="exact"),
        )
        for r in rollouts
    ]  # fmt: skip
    write_records(drawn.dir / "rollouts.parquet", right, Rollout)
    losses = {}
    for packing in (True, False):
        ctx = new_context(f"distilled-{packing}")
        done = run(
            "train.distill", ctx,
            {"packing": packing, "steps": 8, "batch_rows": 3, "lr": 1e-2, "precision": "f32"},
            **{"model": start, "rollouts.0": drawn.dir},
        )  # fmt: skip
        assert done["answers"] == 6  # equal answers once
        losses[packing] = done
        assert done["loss_last"] < done["loss_first"]
        assert checkpoint.load(ctx.dir / "model").config.max_positions == 96
    assert losses[False]["packing"]["rows"] == 6 > losses[True]["packing"]["rows"]


def test_a_problem_that_leaves_no_room_is_counted_and_the_rest_go_on(
    start: Path, tmp_path: Path, new_context: New
) -> None:
    problems = read_records(start / "samples.parquet", Sample)
    long = Sample(kind="sum", source="user", verifier="exact", answer="0",
                  messages=({"role": "user", "content": "What is 1 and 1? " * 40},))  # fmt: skip
    write_records(tmp_path / "samples.parquet", [long, *problems], Sample)
    settings = {"group": 2, "max_tokens": 8}
    drawn = new_context("drawn")
    made = run("train.rollouts", drawn, settings, model=start, problems=tmp_path)
    assert (made["problems"], made["too_long"], made["rollouts"]) == (6, 1, 12)
    asked = {r.meta["problem"] for r in read_records(drawn.dir / "rollouts.parquet", Rollout)}
    assert asked == {p.id for p in problems}
    made = run(
        "train.rollouts", new_context("six"), settings | {"prompts": 6}, model=start,
        problems=tmp_path,
    )  # fmt: skip
    assert made["problems"] == 6  # as many as were asked for
    write_records(tmp_path / "samples.parquet", [long], Sample)
    with pytest.raises(PhikitError, match=r"none of 1 problems leaves room(.|\n)*context is 96"):
        run("train.rollouts", new_context("none"), settings, model=start, problems=tmp_path)


def test_a_published_model_and_how_well_it_reads(start: Path, new_context: New) -> None:
    begun = new_context("begun")
    run("train.start", begun, {"model": str(start / "model")})
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (begun.dir / "model" / name).read_bytes() == (start / "model" / name).read_bytes()
    settings = {"tokens": 200, "context": 32, "precision": "f32"}
    read = run("train.perplexity", new_context("read"), settings, model=begun.dir, documents=start)
    vocabulary = checkpoint.load(start / "model").config.vocab_size
    assert read["perplexity"] == pytest.approx(vocabulary, rel=0.1)  # it knows nothing yet
    with pytest.raises(PhikitError, match="phikit fetch no-such-model"):
        run("train.start", new_context("none"), {"model": "no-such-model"})


def test_padding_changes_nothing(new_context: New) -> None:
    from phikit.data.pack import Batches, pack

    model = tiny_model()
    examples = [(list(range(2, 2 + n)), None) for n in (9, 14, 5)]
    alone = next(Batches(pack(examples, 20, 0, window=1), 3, 0))
    trimmed = without_padding(alone)
    assert trimmed.ids_BL.shape == (1, 64)  # 25, filled up
    assert int((trimmed.segments_BL != 0).sum()) == 25
    full = next(Batches(pack(examples[:1], 8, 0), 1, 0))
    assert without_padding(full) is full
    objective = NextToken.__new__(NextToken)
    objective.label_smoothing = objective.z_loss = 0.0
    whole = objective.loss(model, alone).total
    each = sum(objective.loss(model, row).total for row in cut(alone, 1))
    assert float(whole.detach()) == pytest.approx(float(each.detach()), abs=1e-4)


def test_hard_problems_come_again() -> None:
    objective = grpo(tiny_model(), hard_share=0.5)
    assert len(objective._chosen(0)) == 2  # nothing is known to be hard yet
    objective.accuracy = {0: 0.25, 1: 0.0, 2: 1.0, 3: 0.1, 4: 0.4}
    chosen = objective._chosen(1)
    assert chosen[2:] == [3, 0]
    assert chosen[:2] == grpo(tiny_model(), hard_share=0.5)._chosen(1)
    saved = json.loads(json.dumps(objective.state()))
    again = grpo(tiny_model(), hard_share=0.5)
    again.load_state(saved)
    assert again._chosen(1) == chosen


def test_metrics_reach_tensorboard(new_context: New) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from train_fixtures import tiny_rows

    from phikit.data.pack import Batches
    from phikit.train import loop
    from phikit.train.settings import TrainSettings

    ctx = new_context()
    objective = NextToken(Batches(tiny_rows(), 4, 0))
    loop.train(ctx, tiny_model(), objective, TrainSettings(track=("tensorboard",)), 3)
    board = events.EventAccumulator(str(ctx.dir / "tensorboard"))
    board.Reload()
    shown = [event.value for event in board.Scalars("loss")]
    assert shown == pytest.approx([row["loss"] for row in ctx.metrics.rows])


def test_trackers_go_on_with_a_run_that_was_cut_off(
    new_context: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is shown once, though some were made twice."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from train_fixtures import tiny_rows
    from train_runs import StopAfter

    from phikit.data.pack import Batches
    from phikit.train import loop
    from phikit.train.settings import TrainSettings

    begun: list[dict[str, object]] = []
    trackio = SimpleNamespace(
        init=lambda **named: begun.append(named), log=lambda *_, **__: None, finish=lambda: None
    )
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    settings = TrainSettings(track=("tensorboard", "trackio"), checkpoint_every=2)
    monkeypatch.setattr("phikit.train.rows._FLUSH", 0.0)
    for stop in (5, 0):
        ctx = new_context()
        ctx.progress = StopAfter(stop)
        with suppress(KeyboardInterrupt):
            loop.train(ctx, tiny_model(), NextToken(Batches(tiny_rows(), 4, 0)), settings, 8)
    assert [b["resume"] for b in begun] == ["never", "allow"]
    assert begun[0]["name"] == begun[1]["name"] == f"{ctx.dir.parent.name}/{ctx.dir.name}"
    board = events.EventAccumulator(str(ctx.dir / "tensorboard"))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars("loss")]
    assert [step for step, _ in shown] == list(range(1, 9))
    assert [v for _, v in shown] == pytest.approx([row["loss"] for row in ctx.metrics.rows])
