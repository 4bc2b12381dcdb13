"""The evaluation stages on a tiny untrained model, with the real engine, chat format, verifiers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from phikit.chat.format import chat_format
from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import train_bpe
from phikit.errors import PhikitError
from phikit.evals.stage_ifeval import IfevalConfig, run_ifeval
from phikit.evals.stages import EvalConfig, RecallConfig, _judged_by, run_eval, run_recall
from phikit.evals.tasks import Answer
from phikit.files import read_json
from phikit.models.checkpoint import save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.records import Sample, Score, read_records, write_records
from phikit.stage import Context

CONTEXT = 64


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stages")
    questions = [f"What is {a} plus {b}?" for a in range(4) for b in range(3)]
    tokenizer = train_bpe(questions * 3, 300, NANO_SPECIAL)
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, layers=1, heads=2,
        kv_heads=1, head_dim=16, max_positions=CONTEXT, tied=True,
        eos_ids=chat_format(tokenizer).stop_ids,
    )  # fmt: skip
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, root / "model" / "model")
    tokenizer.save(root / "model" / "model")
    items = [
        Sample(kind="sum", source="synthetic", messages=({"role": "user", "content": q},),
               verifier="math", answer=str(i % 4 + i // 4))
        for i, q in enumerate(questions)
    ]  # fmt: skip
    write_records(root / "items" / "items.parquet", items, Sample)
    recall = [
        dataclasses.replace(items[i], id="", meta={"length": length}, verifier="exact",
                            messages=({"role": "user", "content": "1 plus 2? " * words},))
        for i, (length, words) in enumerate([(30, 4), (30, 5), (300, 60)])
    ]  # fmt: skip
    write_records(root / "items" / "recall.parquet", recall, Sample)
    return {"model": root / "model", "items": root / "items"}


@pytest.mark.parametrize("form", ["chat", "text"])
def test_every_item_is_scored_and_a_second_run_is_equal(
    inputs: dict[str, Path], tmp_path: Path, form: str
) -> None:
    config = EvalConfig(form=form, samples=2, max_tokens=6)  # type: ignore[arg-type]
    contexts = [Context(tmp_path / "a", seed=1), Context(tmp_path / "b", seed=2)]
    summaries = [run_eval(ctx, config, inputs) for ctx in contexts]
    scores = [read_records(ctx.dir / "scores.parquet", Score) for ctx in contexts]
    # the stage's seed differs and nothing else: what an item draws depends on the item alone
    assert scores[0] == scores[1] and summaries[0] == summaries[1]
    assert len(scores[0]) == 12 * 3
    assert {s.sample for s in scores[0]} == {-1, 0, 1}
    assert (summaries[0]["items"], summaries[0]["samples"]) == (12, 2)
    assert contexts[0].cost.tokens_generated == sum(s.cost for s in scores[0]) > 0
    assert contexts[0].cost.flops > 0


def test_fewer_items_keep_their_answers(inputs: dict[str, Path], tmp_path: Path) -> None:
    run_eval(Context(tmp_path / "all"), EvalConfig(samples=1, max_tokens=6), inputs)
    run_eval(Context(tmp_path / "few"), EvalConfig(samples=1, max_tokens=6, items=4), inputs)
    every = {(s.item, s.sample): s.text for s in _scores(tmp_path / "all")}
    few = {(s.item, s.sample): s.text for s in _scores(tmp_path / "few")}
    assert len(few) == 8 and few.items() <= every.items()


@pytest.mark.parametrize("beyond", [True, False])
def test_recall_past_the_context(inputs: dict[str, Path], tmp_path: Path, beyond: bool) -> None:
    summary = run_recall(Context(tmp_path), RecallConfig(max_tokens=4, beyond=beyond), inputs)
    assert [(row["length"], row["items"]) for row in summary["by_length"]] == [(30, 2), (300, 1)]
    assert summary["context"] == CONTEXT
    assert read_json(tmp_path / "recall.json")["by_length"] == summary["by_length"]
    answered = {s.verdict.verifier != "length" for s in _scores(tmp_path)}
    assert answered == ({True} if beyond else {True, False})


def test_recall_items_must_state_their_length(inputs: dict[str, Path], tmp_path: Path) -> None:
    items = read_records(inputs["items"] / "items.parquet", Sample)
    write_records(tmp_path / "items" / "recall.parquet", items, Sample)
    with pytest.raises(PhikitError, match="does not state its length"):
        run_recall(Context(tmp_path), RecallConfig(), {**inputs, "items": tmp_path / "items"})


def _scores(folder: Path) -> list[Score]:
    return read_records(folder / "scores.parquet", Score)


def test_another_verifier_reads_answers_in_any_wording(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    ctx = Context(tmp_path)
    run_eval(ctx, EvalConfig(samples=1, max_tokens=6, verifiers={"math": "number"}), inputs)
    assert {s.verdict.verifier for s in _scores(tmp_path)} == {"number"}
    with pytest.raises(ValueError, match="number"):
        EvalConfig(verifiers={"math": "numbr"})


def test_ifeval_asks_and_checks_its_prompts(inputs: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        {"key": 7, "prompt": "What is 1 plus 2?", "instruction_id_list": [name], "kwargs": [kwargs]}
        for name, kwargs in (
            ("length_constraints:number_words", {"relation": "less than", "num_words": 99}),
            ("startend:end_checker", {"end_phrase": "never said", "first_word": None}),
        )
    ]
    file = tmp_path / "ifeval.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    summary = run_ifeval(
        Context(tmp_path / "a"), IfevalConfig(path=str(file), max_tokens=6), inputs
    )
    assert (summary["items"], summary["accuracy"], summary["demands_kept"]) == (2, 0.5, 0.5)
    assert [s.verdict.passed for s in _scores(tmp_path / "a")] == [True, False]
    file.write_text('{"key": 7}\n')
    with pytest.raises(PhikitError, match=r"ifeval\.jsonl:1: .*instruction_id_list"):
        run_ifeval(Context(tmp_path / "b"), IfevalConfig(path=str(file)), inputs)
    with pytest.raises(PhikitError, match="not here"):
        run_ifeval(Context(tmp_path / "c"), IfevalConfig(path=str(tmp_path / "no")), inputs)


def test_a_gold_answer_that_is_no_text_gives_way_to_its_text() -> None:
    item = Sample(kind="k", source="s", text="?", verifier="gym", answer='{"entry": {}}',
                  meta={"answer": "42"})  # fmt: skip
    judged = _judged_by(Answer(item, 0, None, "It is 42."), {"gym": "number"})
    assert (judged.item.verifier, judged.item.answer, judged.item.id) == ("number", "42", item.id)
    assert _judged_by(judged, {"gym": "number"}) is judged
