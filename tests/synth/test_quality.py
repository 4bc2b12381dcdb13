"""Annotations by rubrics, and a classifier that learns them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from phikit.errors import PhikitError
from phikit.records import Document, read_records, write_records
from phikit.stage import Context
from phikit.synth import quality, rubrics, stage_quality
from phikit.synth.stage_quality import AnnotateConfig, QualityConfig

GOOD = (
    "Heat flows from the warm body to the cold one because its molecules move faster. "
    "For example, a spoon of 20 grams is called warm if it stands in tea; therefore it rises. "
)
BAD = "Click here now, subscribe, like and share this page with all of your friends today ok. "


def mixed(count: int, seed: int = 0) -> list[Document]:
    """Documents of which the even ones explain and the odd ones advertise."""
    rng = Random(seed)
    made = []
    for i in range(count):
        words = (GOOD if i % 2 == 0 else BAD).split() * 3
        extra = [f"w{rng.randrange(500)}" for _ in range(30)]
        made.append(Document(text=" ".join(rng.sample(words, 40) + extra), source="web",
                             meta={"name": f"d{i}"}))  # fmt: skip
    return made


def test_rules_prefer_what_explains() -> None:
    good, bad = rubrics.by_rules(GOOD * 3), rubrics.by_rules(BAD * 3)
    assert good.educational > bad.educational and good.reasoning > bad.reasoning
    assert rubrics.by_rules("one two three").total == 1


def test_a_classifier_learns_what_can_be_learnt_and_says_so_when_it_cannot() -> None:
    documents = mixed(400)
    texts, grades = [d.text for d in documents], [5.0 if i % 2 == 0 else 1.0 for i in range(400)]
    made = quality.fit(texts[:300], grades[:300], 3.0)
    found = quality.measure(made, texts[300:], grades[300:], 3.0)
    assert found.precision > 0.95 and found.recall > 0.95 and found.base == 0.5 and found.rank > 0.8
    chance = Random(1)
    noise = [float(chance.randint(1, 5)) for _ in texts]
    lost = quality.measure(quality.fit(texts[:300], noise[:300], 4), texts[300:], noise[300:], 4)
    assert abs(lost.rank) < 0.3 and lost.precision < 0.65
    with pytest.raises(PhikitError, match="too few"):
        quality.fit(texts[:5], grades[:5], 3)


def test_many_texts_are_learnt_from_as_few_are_and_without_holding_their_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "FEATURES", 256)
    texts = [d.text for d in mixed(256)]
    grades = [float(i % 2) + (i % 7) / 10 for i in range(256)]
    few = quality.fit(texts, grades, 1)
    monkeypatch.setattr(quality, "_Dual", quality._Primal)
    many = quality.fit(texts, grades, 1)
    np.testing.assert_allclose(many.weights_F, few.weights_F, atol=2e-3)
    assert many.bias == pytest.approx(few.bias, abs=2e-3)
    assert many.threshold == pytest.approx(few.threshold, abs=2e-3)


def test_other_scripts_have_words_too() -> None:
    for text in ("Привет мир", "γειά σου κόσμε", "été à Nîmes", "你好世界"):
        assert np.count_nonzero(quality.features([text])) >= 3
    same = quality.features(["你好", "你 好"])
    np.testing.assert_array_equal(same[0], same[1])


def test_a_classifier_is_kept_and_read(tmp_path: Path) -> None:
    texts = [d.text for d in mixed(40)]
    made = quality.fit(texts, [float(i % 2) for i in range(40)], 1)
    made.save(tmp_path / "c.npz")
    again = quality.Classifier.load(tmp_path / "c.npz")
    assert np.array_equal(again.scores(texts), made.scores(texts))
    assert np.allclose(made.scores(texts, together=7), made.scores(texts), atol=1e-5)


def test_spearman_against_hand() -> None:
    assert quality.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert quality.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert quality.spearman([1, 1, 2, 3], [1, 2, 3, 3]) == pytest.approx(8 / 9)
    assert quality.spearman([1, 1, 1], [1, 2, 3]) == 0


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_records(tmp_path / "docs" / "documents.parquet", mixed(200), Document)
    return tmp_path / "docs"


def test_the_stages_keep_the_better_part(corpus: Path, tmp_path: Path) -> None:
    for name in ("a", "q"):
        (tmp_path / name).mkdir()
    told = stage_quality.run_annotate(
        Context(tmp_path / "a"), AnnotateConfig(annotator="rules", count=120), {"documents": corpus}
    )
    assert told["graded"] == 120
    config = QualityConfig(keep=0.5, good_share=0.5)
    summary = stage_quality.run_quality(
        Context(tmp_path / "q"), config, {"documents": corpus, "annotations": tmp_path / "a"}
    )
    assert summary["held_out_precision"] > 0.9 and summary["scored"] == 200
    kept = read_records(tmp_path / "q" / "documents.parquet", Document)
    assert sum(int(d.meta["name"][1:]) % 2 == 0 for d in kept) > 0.95 * len(kept)
    rejected = (tmp_path / "q" / "rejected.jsonl").read_text().splitlines()
    assert len(kept) + len(rejected) == 200
    least = min(d.meta["quality"] for d in kept)
    assert all(json.loads(r)["quality"] <= least for r in rejected)


def test_a_teachers_agreement_with_itself_is_measured(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phikit.synth.replies import ReplyStore, Request
    from phikit.synth.stored_teacher import Answer, Budget, StoredTeacher

    class Fickle(StoredTeacher):
        """Always the same on education, at random on reasoning, and no grades now and then."""

        async def _generate(self, request: Request, attempt: int) -> Answer:
            rng = Random(request.key("m"))
            marks = {"educational": 4, "reasoning": rng.randint(1, 5), "density": rng.randint(2, 3)}
            return Answer("no" if rng.random() < 0.1 else json.dumps(marks), 1, 1)

    def give(config: object, inputs: object, store: ReplyStore, seed: int) -> StoredTeacher:
        return Fickle("m", Budget(rewrites=0), store)

    monkeypatch.setattr(stage_quality, "teacher_of", give)
    (tmp_path / "a").mkdir()
    config = AnnotateConfig(count=150)
    told = stage_quality.run_annotate(Context(tmp_path / "a"), config, {"documents": corpus})
    assert told["educational"]["equal"] == 1 and told["educational"]["rank"] == 0
    assert told["reasoning"]["equal"] < 0.4 and told["density"]["within_one"] == 1
    assert 0 < told["readings_lost"] < 60
    rows = (tmp_path / "a" / "annotations.jsonl").read_text().splitlines()
    assert len(rows) == told["graded"] == 150 - told["without_grades"]
