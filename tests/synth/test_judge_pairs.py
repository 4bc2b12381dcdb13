import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.errors import PhikitError
from phikit.records import Pair, Rollout, Sample, read_records, write_records
from phikit.stage import Context
from phikit.synth.judge_pairs import (
    JUDGE_STAGES,
    Judged,
    JudgePairsConfig,
    choose_problems,
    limit_refusals,
    make_pairs,
    run_judge_pairs,
)
from phikit.verify.base import Problem
from phikit.verify.judge import Grades

PROBLEM = Problem("How many?", "42", "math", "changes", "p1")
CONFIG = JudgePairsConfig(min_accuracy_gap=2, min_overall_gap=1, pairs_per_prompt=2)


def answer(
    number: int, accuracy: float, style: float = 3, detail: float = 3, finish: str = "stop"
) -> Judged:
    rollout = Rollout(
        prompt_ids=(1, 2), completion_ids=(10 + number, 0), logprobs=(-1.0, -1.0), finish=finish
    )
    return Judged(0, number, rollout, f"text {number}", Grades(accuracy, style, detail))


def test_pairs_by_accuracy_and_by_overall_with_their_evidence() -> None:
    answers = [answer(0, 5), answer(1, 2), answer(2, 5, 5, 5)]
    pairs = make_pairs(PROBLEM, answers, CONFIG, seed=0)
    found = {(p.evidence["by"], p.chosen_ids, p.rejected_ids) for p in pairs}
    assert found == {
        ("accuracy", (10, 0), (11, 0)),
        ("accuracy", (12, 0), (11, 0)),
        ("overall", (12, 0), (10, 0)),
    }
    pair = next(p for p in pairs if p.evidence["by"] == "overall")
    assert (pair.kind, pair.prompt_ids, pair.evidence["problem"]) == ("judge", (1, 2), "p1")
    assert pair.evidence["chosen"]["overall"] == 5 and pair.evidence["rejected"]["style"] == 3
    assert pair.parents[0] == "p1" and len(pair.parents) == 3


def test_what_is_not_paired() -> None:
    cut = answer(0, 5, finish="length")
    assert make_pairs(PROBLEM, [cut, answer(1, 1)], CONFIG, 0) == []
    ungraded = Judged(0, 0, answer(0, 5).rollout, "x", None)
    assert make_pairs(PROBLEM, [ungraded, answer(1, 1)], CONFIG, 0) == []
    assert make_pairs(PROBLEM, [answer(0, 4), answer(1, 3)], CONFIG, 0) == []  # too close
    prettier_but_wrong = [answer(0, 2, 5, 5), answer(1, 3, 1, 1)]
    assert make_pairs(PROBLEM, prettier_but_wrong, CONFIG, 0) == []


marks = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


@given(st.lists(marks, min_size=1, max_size=8), st.integers(0, 5))
def test_every_pair_prefers_the_better_answer(
    grades: list[tuple[int, int, int]], seed: int
) -> None:
    answers = [answer(i, *g) for i, g in enumerate(grades)]
    pairs = make_pairs(PROBLEM, answers, CONFIG, seed)
    assert pairs == make_pairs(PROBLEM, answers, CONFIG, seed)
    assert len({(p.chosen_ids, p.rejected_ids) for p in pairs}) == len(pairs) <= 4
    for pair in pairs:
        chosen, rejected = pair.evidence["chosen"], pair.evidence["rejected"]
        assert chosen["accuracy"] >= rejected["accuracy"]
        by = pair.evidence["by"]
        assert chosen[by] - rejected[by] >= (2 if by == "accuracy" else 0.99)


def test_models_of_different_tokenizers_are_refused() -> None:
    other = Judged(
        1, 0, Rollout(prompt_ids=(9,), completion_ids=(3,), logprobs=(0.0,)), "x", Grades(1, 1, 1)
    )
    with pytest.raises(PhikitError, match="as other tokens"):
        make_pairs(PROBLEM, [answer(0, 5), other], CONFIG, 0)


def test_refusals_are_a_small_share() -> None:
    def pair(number: int, declined: bool) -> Pair:
        return Pair(
            prompt_ids=(number,), chosen_ids=(1,), rejected_ids=(2,), kind="judge",
            evidence={"declined": declined},
        )  # fmt: skip

    pairs = [pair(i, i % 2 == 0) for i in range(200)]
    kept = limit_refusals(pairs, 0.05)
    declined = sum(p.evidence["declined"] for p in kept)
    assert declined == 5 and len(kept) == 105
    assert sum(p.evidence["declined"] for p in limit_refusals(pairs, 0)) == 0


def sample(number: int, verifier: str = "math") -> Sample:
    messages = ({"role": "user", "content": f"What is {number} + 1?"},)
    return Sample(
        kind="sum", source="synthetic", messages=messages, verifier=verifier, answer=str(number + 1)
    )


def test_problems_are_drawn_with_their_share_of_refusals() -> None:
    samples = [sample(i) for i in range(100)] + [sample(i, "refusal") for i in range(50)]
    samples.append(Sample(kind="text", source="web", text="no question"))
    config = JudgePairsConfig(prompts=50, refusal_share=0.04)
    chosen = choose_problems(samples, config, seed=1)
    assert len(chosen) == 50
    assert sum(s.verifier == "refusal" for s in chosen) == 4
    assert chosen == choose_problems(samples, config, seed=1)
    assert chosen != choose_problems(samples, config, seed=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model with a real tokenizer, and problems."""
    import torch

    from phikit.chat.templates import PHI4
    from phikit.chat.tokenizer import train_bpe
    from phikit.models.checkpoint import save
    from phikit.models.decoder import Decoder
    from phikit.models.decoder_config import DecoderConfig

    root = tmp_path_factory.mktemp("judge")
    tokenizer = train_bpe(["What is 1 + 1? Answer: 2\n"] * 20, 300, list(PHI4.control()))
    tokenizer.save(root / "policy" / "model")
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, layers=1, heads=2, kv_heads=1,
        head_dim=8, intermediate_size=32, max_positions=128,
    )  # fmt: skip
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, root / "policy" / "model")
    write_records(root / "problems" / "samples.parquet", [sample(i) for i in range(5)], Sample)
    return {"models.0": root / "policy", "problems": root / "problems"}


def test_the_stage_runs_twice_to_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    config = JudgePairsConfig(prompts=4, responses=3, max_tokens=12, min_overall_gap=0.3)
    for name in ("a", "b"):
        ctx = Context(dir=tmp_path / name, seed=3)
        ctx.dir.mkdir()
        summary = run_judge_pairs(ctx, config, folders | {"models.1": folders["models.0"]})
    assert summary["prompts"] == 4 and summary["responses"] == 24
    assert [m["model"] for m in summary["mean_grades"]] == [0, 1]
    assert ctx.cost.tokens_generated > 0 and ctx.cost.flops > 0
    for file in ("judged.jsonl", "pairs.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a" / "judged.jsonl").open()]
    assert len(rows) == 24 and {r["model"] for r in rows} == {0, 1}
    assert len(read_records(tmp_path / "a" / "pairs.parquet", Pair)) == summary["pairs"]


def test_what_a_judge_or_a_model_has_no_room_for_is_set_aside(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    long = Sample(
        kind="long", source="user", verifier="exact", answer="1",
        messages=({"role": "user", "content": "What is " * 200},),
    )  # fmt: skip
    write_records(tmp_path / "samples.parquet", [sample(0), long, sample(1)], Sample)
    config = JudgePairsConfig(prompts=3, responses=2, max_tokens=4, judge_tokens=4)
    ctx = Context(dir=tmp_path)
    given = folders | {"problems": tmp_path, "judge": folders["models.0"]}
    done = run_judge_pairs(ctx, config, given)
    assert (done["prompts"], done["too_long"], done["responses"]) == (3, 1, 4)
    assert done["ungraded"] == 4  # the judge's instructions do not fit this model's context
    assert (done["judge_report"]["too_long"], done["judge_report"]["replies"]) == (4, 0)
    rows = [json.loads(line) for line in (tmp_path / "judged.jsonl").open()]
    assert {r["problem"] for r in rows} == {sample(0).id, sample(1).id}
    assert all("the judge's context 128" in r["ungraded"] for r in rows)
    write_records(tmp_path / "samples.parquet", [long], Sample)
    with pytest.raises(PhikitError, match="none of 1 problems leaves room"):
        run_judge_pairs(ctx, config, given)


def test_problems_without_verifiers_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    texts = [Sample(kind="text", source="web", text="x")]
    write_records(tmp_path / "problems" / "samples.parquet", texts, Sample)
    with pytest.raises(PhikitError, match="names a verifier"):
        run_judge_pairs(
            Context(dir=tmp_path), CONFIG, folders | {"problems": tmp_path / "problems"}
        )


def test_the_stage_is_offered() -> None:
    [stage] = JUDGE_STAGES
    assert stage.verb == "synth.judge_pairs" and stage.inputs == ("models*", "problems", "judge?")
