"""The stages from folders to folders: each writes a model that loads, and resumes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_fixtures import SPECIAL, write_shards

from phikit import single
from phikit.chat.format import chat_format
from phikit.chat.tokenizer import train_bpe
from phikit.errors import PhikitError
from phikit.models import checkpoint
from phikit.records import Pair, Rollout, Sample, Verdict, read_records, write_records
from phikit.stage import Context, Silent
from phikit.train.stage_start import StartSettings
from phikit.train.stages import STAGES

BY_VERB = {stage.verb: stage for stage in STAGES}
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "layers": 2, "heads": 2, "kv_heads": 1,
         "head_dim": 16}  # fmt: skip


def question(i: int) -> Sample:
    a, b = i % 7, i % 5
    return Sample(
        kind="sum", source="synthetic", verifier="exact", answer=str(a + b),
        messages=(
            {"role": "user", "content": f"What is {a} and {b}?"},
            {"role": "assistant", "content": f"Answer: {a + b}"},
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer, shards, samples and problems, as the stages before would leave them."""
    root = tmp_path_factory.mktemp("inputs")
    samples = [question(i) for i in range(40)]
    texts = [" ".join(m["content"] for m in s.messages) for s in samples]
    tokenizer = train_bpe(texts, 300, SPECIAL)
    tokenizer.save(root / "tokenizer")
    chat = chat_format(tokenizer)
    end = tokenizer.special["<|endoftext|>"]
    documents = [[*tokenizer.encode(t), end] for t in texts]
    write_shards(root, documents)
    write_records(root / "samples.parquet", samples, Sample)
    pairs = [
        Pair(
            prompt_ids=tuple(chat.render(s.prompt, generation_prompt=True).ids),
            chosen_ids=tuple(tokenizer.encode(s.answer)[:1]),
            rejected_ids=tuple(tokenizer.encode("8" if s.answer == "9" else "9")[:1]),
            kind="pivot",
        )
        for s in samples
    ]
    write_records(root / "pairs.parquet", pairs, Pair)
    return {"root": root}


def run(verb: str, folder: Path, settings: dict[str, Any], **inputs: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    stage = BY_VERB[verb]
    config = stage.config(**{"checkpoint_every": 2} | settings)
    return stage.run(Context(folder, seed=1), config, inputs)


def test_from_nothing_to_rewarded(inputs: dict[str, Path], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    root = inputs["root"]
    done = run(
        "train.pretrain", tmp_path / "pre",
        {"model": SHAPE, "context": 32, "batch_rows": 4, "steps": 6, "lr": 1e-2},
        shards=root, tokenizer=root,
    )  # fmt: skip
    assert done["steps"] == 6 and done["loss_last"] < done["loss_first"]
    first = checkpoint.load(tmp_path / "pre" / "model")
    assert first.config.max_positions == 32
    assert not (tmp_path / "pre" / "checkpoints").exists()

    run(
        "train.midtrain", tmp_path / "mid", {"batch_rows": 2, "steps": 3},
        model=tmp_path / "pre", shards=root,
    )  # fmt: skip
    longer = checkpoint.load(tmp_path / "mid" / "model").config
    assert (longer.max_positions, longer.rope_theta) == (128, 50_000.0)

    sft = {"steps": 40, "batch_rows": 4, "lr": 1e-2, "context": 32, "precision": "f32"}
    done = run(
        "train.sft", tmp_path / "sft", sft,
        **{"model": tmp_path / "mid", "samples.0": root, "samples.1": root},
    )  # fmt: skip
    assert done["packing"]["examples"] == 80 and done["loss_last"] < 1.5

    done = run(
        "train.dpo", tmp_path / "dpo", {"lr": 1e-3, "batch_pairs": 8, "save_dtype": "bfloat16"},
        **{"model": tmp_path / "sft", "pairs.0": root},
    )  # fmt: skip
    assert done["pairs"] == {"pivot": 40} and done["steps"] == 5
    assert next(checkpoint.load(tmp_path / "dpo" / "model").parameters()).dtype == torch.bfloat16

    rollouts = {"prompts": 4, "group": 4, "max_tokens": 12, "think": False, "temperature": 1.5}
    done = run(
        "train.grpo", tmp_path / "grpo",
        {"lr": 1e-3, "steps": 4, "warmup": 0, "rollouts": rollouts},
        model=tmp_path / "sft", problems=root,
    )  # fmt: skip
    assert done["steps"] == 4 and 0 <= done["right"] <= 1
    rows = [json.loads(r) for r in (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()]
    gaps = [row["engine_gap"] for row in rows if "engine_gap" in row]
    assert gaps and max(gaps) < 0.1
    for name in ("pre", "mid", "sft", "dpo", "grpo"):
        files = {p.name for p in (tmp_path / name / "model").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files


def test_a_finished_stage_is_not_trained_again(inputs: dict[str, Path], tmp_path: Path) -> None:
    root = inputs["root"]
    settings = {"model": SHAPE, "context": 32, "batch_rows": 4, "steps": 3}
    done = run("train.pretrain", tmp_path / "a", settings, shards=root, tokenizer=root)
    before = (tmp_path / "a" / "model" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "a" / "checkpoints").mkdir()  # killed while removing them
    again = run("train.pretrain", tmp_path / "a", settings, shards=root, tokenizer=root)
    assert (tmp_path / "a" / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert {k: done[k] for k in ("steps", "tokens", "loss_last")} == {
        k: again[k] for k in ("steps", "tokens", "loss_last")
    }


def test_without_pairs_the_model_passes_through_when_that_is_allowed(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    root, empty = inputs["root"], tmp_path / "empty"
    settings = {"model": SHAPE, "context": 32, "batch_rows": 4, "steps": 1}
    run("train.pretrain", tmp_path / "pre", settings, shards=root, tokenizer=root)
    write_records(empty / "pairs.parquet", [], Pair)
    given = {"model": tmp_path / "pre", "pairs.0": empty, "pairs.1": empty}
    for _ in range(2):  # also after a kill between the model and the end
        done = run("train.dpo", tmp_path / "dpo", {"allow_empty": True}, **given)
        assert (done["note"], done["steps"]) == ("no pairs: unchanged", 0)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        before, after = (tmp_path / x / "model" / name for x in ("pre", "dpo"))
        assert before.read_bytes() == after.read_bytes()
    # pairs that do not fit are a mistake all the same
    with pytest.raises(PhikitError, match="none of 40 pairs"):
        run("train.dpo", tmp_path / "x", {"allow_empty": True, "max_tokens": 2},
            **given | {"pairs.1": root})  # fmt: skip


def test_what_a_user_may_get_wrong(inputs: dict[str, Path], tmp_path: Path) -> None:
    root = inputs["root"]
    run(
        "train.pretrain", tmp_path / "pre", {"model": SHAPE, "context": 32, "steps": 1},
        shards=root, tokenizer=root,
    )  # fmt: skip
    empty = tmp_path / "empty"
    write_records(empty / "samples.parquet", [], Sample)
    write_records(empty / "pairs.parquet", [], Pair)
    model = tmp_path / "pre"
    with pytest.raises(PhikitError, match="none of its samples"):
        run("train.sft", tmp_path / "x", {}, **{"model": model, "samples.0": empty})
    with pytest.raises(PhikitError, match="none of 0 pairs"):
        run("train.dpo", tmp_path / "x", {}, **{"model": model, "pairs.0": empty})
    with pytest.raises(PhikitError, match="leaves 192 tokens"):
        run("train.grpo", tmp_path / "x", {}, model=model, problems=root)
    with pytest.raises(PhikitError, match="multiple of"):
        bad = {"steps": 5, "warmup": 0, "loss": {"updates": 2}, "rollouts": {"max_tokens": 5}}
        run("train.grpo", tmp_path / "x", bad, model=model, problems=root)
    with pytest.raises(PhikitError, match="warmup is 900 steps, but the run has 5"):
        run("train.dpo", tmp_path / "x", {"warmup": 900, "batch_pairs": 8},
            **{"model": model, "pairs.0": root})  # fmt: skip


@pytest.fixture
def start(inputs: dict[str, Path], tmp_path: Path) -> Path:
    """The folder of a model that has made one step."""
    folder, root = tmp_path / "start", inputs["root"]
    settings = {"model": SHAPE, "context": 64, "steps": 1}
    run("train.pretrain", folder, settings, shards=root, tokenizer=root)
    return folder


def test_what_does_not_fit_the_model_is_named(
    inputs: dict[str, Path], start: Path, tmp_path: Path
) -> None:
    """Never read from beside the weights, whatever a user hands in."""
    root = inputs["root"]

    def refused(verb: str, said: str, settings: dict[str, Any], **folders: Path) -> None:
        with pytest.raises(PhikitError, match=said):
            run(verb, tmp_path / "x", settings, **folders)

    for ids in ((5, 9999), (5, -4)):
        for number in range(3):
            parts = [(5, 6), (7,), (8,)]
            parts[number] = ids
            pair = Pair(
                prompt_ids=parts[0], chosen_ids=parts[1], rejected_ids=parts[2], kind="pivot"
            )
            write_records(tmp_path / "pairs.parquet", [pair], Pair)
            refused(
                "train.dpo", rf"pairs.parquet: pair {pair.id}: token id {ids[1]} .* of 320", {},
                **{"model": start, "pairs.0": tmp_path},
            )  # fmt: skip
    verdict = Verdict(passed=True, score=1.0, reason="", verifier="exact")
    answer = Rollout(prompt_ids=(4,), completion_ids=(999, 1), logprobs=(0.0, 0.0), verdict=verdict)
    write_records(tmp_path / "rollouts.parquet", [answer], Rollout)
    refused(
        "train.distill", f"rollout {answer.id}: token id 999", {},
        **{"model": start, "rollouts.0": tmp_path},
    )  # fmt: skip
    write_shards(tmp_path, [[4, 5, 6], [7, 5000, 8]])
    refused("train.midtrain", "document 1: token id 5000", {}, model=start, shards=tmp_path)
    refused(
        "train.pretrain", "document 1: token id 5000", {"model": SHAPE},
        tokenizer=root, shards=tmp_path,
    )  # fmt: skip
    longer = {"context": 65}
    refused("train.sft", "65, but the model's context is 64", longer,
            **{"model": start, "samples.0": root})  # fmt: skip
    refused("train.distill", "65, but the model's context is 64", longer,
            **{"model": start, "rollouts.0": tmp_path})  # fmt: skip
    refused("train.dpo", "65, but the model's context is 64", {"max_tokens": 65},
            **{"model": start, "pairs.0": root})  # fmt: skip
    odd = Sample(kind="x", source="x", messages=(
        {"role": "usr", "content": "?"}, {"role": "assistant", "content": "!"}))  # fmt: skip
    write_records(tmp_path / "samples.parquet", [odd], Sample)
    refused("train.sft", f"samples.parquet: sample {odd.id}: .*'usr'", {},
            **{"model": start, "samples.0": tmp_path})  # fmt: skip
    refused("train.sft", "no model/ in it", {}, **{"model": root, "samples.0": root})
    with pytest.raises(PhikitError) as e:
        run("train.sft", tmp_path / "x", {}, **{"model": start / "model", "samples.0": root})
    assert "phikit train start --set model=" in str(e.value)


def test_what_cannot_be_learned_from_is_counted(start: Path, tmp_path: Path) -> None:
    asked = Sample(kind="x", source="x", messages=({"role": "user", "content": "?"},))
    write_records(tmp_path / "samples.parquet", [question(1), question(2), asked], Sample)
    longer = {"steps": 1, "context": 80, "rope_theta": 2e4}
    done = run("train.sft", tmp_path / "sft", longer, **{"model": start, "samples.0": tmp_path})
    assert done["unanswered"] == 1 and done["packing"]["examples"] == 2
    assert done["row_copies_per_step"] == 32 / done["packing"]["rows"]
    made = json.loads((tmp_path / "sft" / "model" / "config.json").read_text())
    assert (made["max_position_embeddings"], made["rope_theta"]) == (80, 2e4)
    # a base of its own without a context is not forgotten, and a short context shortens no model
    for name, settings in (("a", {}), ("b", {"context": 40})):
        run("train.sft", tmp_path / name, {"steps": 1, "rope_theta": 3e4} | settings,
            **{"model": start, "samples.0": tmp_path})  # fmt: skip
        made = json.loads((tmp_path / name / "model" / "config.json").read_text())
        assert (made["max_position_embeddings"], made["rope_theta"]) == (64, 3e4)
    same = Pair(prompt_ids=(4, 5), chosen_ids=(6,), rejected_ids=(6,), kind="pivot")
    other = Pair(prompt_ids=(4, 5), chosen_ids=(6,), rejected_ids=(7,), kind="pivot")
    write_records(tmp_path / "pairs.parquet", [same, other], Pair)
    done = run("train.dpo", tmp_path / "dpo", {"steps": 1, "batch_pairs": 1},
               **{"model": start, "pairs.0": tmp_path})  # fmt: skip
    assert done["left_out"] == 1 and done["pairs"] == {"pivot": 1}


def test_a_problem_too_long_to_be_answered_is_left_out_of_rewards(
    start: Path, tmp_path: Path
) -> None:
    long = {"role": "user", "content": "What is 1 and 1? " * 40}
    asked = [replace(question(i), id="") for i in range(3)]
    write_records(
        tmp_path / "samples.parquet", [replace(asked[0], id="", messages=(long,)), *asked], Sample
    )
    settings = {"steps": 1, "warmup": 0, "rollouts": {"prompts": 4, "group": 2, "max_tokens": 6}}
    done = run("train.grpo", tmp_path / "x", settings, model=start, problems=tmp_path)
    assert (done["problems"], done["left_out"]) == (3, 1)


def test_rewards_that_never_differ_teach_nothing_and_the_result_says_so(
    start: Path, tmp_path: Path
) -> None:
    asked = [replace(question(i), id="") for i in range(3)]
    write_records(tmp_path / "samples.parquet", asked, Sample)
    settings = {
        "steps": 4, "warmup": 0, "lr": 1e-2, "loss": {"updates": 2},
        "rollouts": {"prompts": 2, "group": 2, "max_tokens": 6, "reward": "sign"},
    }  # fmt: skip
    done = run("train.grpo", tmp_path / "x", settings, model=start, problems=tmp_path)
    assert (done["note"], done["steps_without_groups"]) == ("no group kept: unchanged", 2)
    before, after = (p / "model" / "model.safetensors" for p in (start, tmp_path / "x"))
    assert before.read_bytes() == after.read_bytes()
    settings["rollouts"] |= {"reward": "reasoning", "think": False, "temperature": 2.0}
    settings["rollouts"] |= {"group": 8, "max_tokens": 40}
    done = run("train.grpo", tmp_path / "y", settings, model=start, problems=tmp_path)
    assert "note" not in done and done["steps_without_groups"] < 2


class KilledAfter(Silent):
    """Ends a stage after so many steps, as a kill would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def update(self, done: float, total: float, **fields: float | str) -> None:
        if done == self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("verb", "role", "file"),
    [
        ("train.dpo", "pairs.0", "pairs.parquet"),
        ("train.sft", "samples.0", "samples.parquet"),
        ("train.distill", "rollouts.0", "rollouts.parquet"),
        ("train.midtrain", "shards", "tokens.bin"),
        ("train.grpo", "problems", "samples.parquet"),
        ("train.dpo", "model", "model/model.safetensors"),
    ],
)
def test_a_stage_goes_on_with_the_data_that_it_was_trained_on(
    verb: str, role: str, file: str, inputs: dict[str, Path], start: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(inputs["root"], tmp_path / "data")
    verdict = Verdict(passed=True, score=1.0, reason="", verifier="exact")
    answers = [
        Rollout(prompt_ids=(4, i), completion_ids=(9, 1), logprobs=(0.0, 0.0), verdict=verdict)
        for i in range(4, 8)
    ]
    write_records(data / "rollouts.parquet", answers, Rollout)
    settings: dict[str, Any] = {"steps": 4, "warmup": 0, "checkpoint_every": 2}
    if verb == "train.grpo":
        settings["rollouts"] = {"prompts": 2, "group": 2, "max_tokens": 4}
    given = {"model": start, role: data} if role != "model" else {"model": start, "pairs.0": data}
    stage, out = BY_VERB[verb], tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        killed = Context(out, seed=1, progress=KilledAfter(3))
        stage.run(killed, stage.config(**settings), given)
    changed = given[role] / file
    before = changed.read_bytes()
    with_another(changed)
    with pytest.raises(PhikitError, match=f"{file}: not what .*step-00000002 was trained on") as e:
        run(verb, out, settings, **given)
    assert str(out / "checkpoints") in e.value.hint
    changed.write_bytes(before)
    assert run(verb, out, settings, **given)["steps"] == 4


def with_another(file: Path) -> None:
    """Changes one record, token or weight of a file in place."""
    records: dict[str, type[Any]] = {"pairs": Pair, "samples": Sample, "rollouts": Rollout}
    if file.stem in records:
        kind = records[file.stem]
        read = read_records(file, kind)
        write_records(file, [*read[1:], read[1]], kind)
    elif file.suffix == ".safetensors":
        tensors = load_file(file)
        tensors["model.norm.weight"] += 1
        save_file(tensors, file)
    else:
        ids = file.read_bytes()
        file.write_bytes(ids[4:8] + ids[:4] + ids[8:])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": ["lr=1e-3"]}, "lr was 1e-05, now 0.001"),
        ({"settings": ["optimiser.clip=2"]}, "optimiser.clip was 1.0, now 2.0"),
        ({"settings": ["lora.rank=4"]}, "lora was None, now {'rank': 4"),
        ({"seed": 3}, "seed was 0, now 3"),
        (
            {"inputs": {"model": "MODEL", "samples": "OTHER"}},
            "inputs.samples.0 was '.*', now '.*other'",
        ),
    ],
)
def test_a_folder_of_another_run_says_what_differs(
    changed: dict[str, Any], said: str, inputs: dict[str, Path], start: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    told: dict[str, Any] = {"settings": [], "seed": 0}
    told["inputs"] = {"model": "MODEL", "samples": "SAMPLES"}
    places = {"MODEL": start, "SAMPLES": inputs["root"], "OTHER": tmp_path / "other"}

    def begin(of: dict[str, Any]) -> None:
        named = [f"{role}={places[place]}" for role, place in of["inputs"].items()]
        settings = ["steps=1", *of["settings"]]
        single.run("train", "sft", named, settings, tmp_path / "x", of["seed"], 1)

    (tmp_path / "x").mkdir()
    begin(told)
    (tmp_path / "x" / "stage.json").unlink()  # as a run that was killed leaves it
    with pytest.raises(PhikitError, match=f"another run was begun here: {said}"):
        begin(told | changed)
    begin(told)
    assert (tmp_path / "x" / "stage.json").exists()


def test_a_model_without_its_tokenizer_does_not_begin(start: Path, tmp_path: Path) -> None:
    for file in ("tokenizer_config.json", "tokenizer.json"):
        (start / "model" / file).unlink()
        with pytest.raises(PhikitError, match=f"the model has no {file}"):
            BY_VERB["train.start"].run(
                Context(tmp_path), StartSettings(model=str(start / "model")), {}
            )


def test_preferences_of_a_model_in_several_files(
    inputs: dict[str, Path], start: Path, tmp_path: Path
) -> None:
    """As published ones are: the reference is stored under the content of all of them."""
    root = inputs["root"]
    tensors = load_file(start / "model" / "model.safetensors")
    (start / "model" / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, start / "model" / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (start / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    done = run("train.dpo", tmp_path / "dpo", {"steps": 1}, **{"model": start, "pairs.0": root})
    assert done["loss_first"] == pytest.approx(0.6931, abs=1e-3)
