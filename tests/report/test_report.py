"""The page says what the run's files say, escapes what models say, and stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from build_run import HOSTILE, Builder, build

from phikit import report, summary
from phikit.errors import PhikitError
from phikit.evals.statistics import item_means, paired
from phikit.files import write_json
from phikit.records import Score, Verdict, read_records, write_records
from phikit.reporting.evaluations import Evaluations
from phikit.reporting.kept import table as kept_table
from phikit.reporting.run_dir import Run
from phikit.reporting.searches import searches
from phikit.reporting.words import duration, percent, points, quantity


class Page(HTMLParser):
    """Every tag with its attributes, and the text without markup."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html(whole_run: Path) -> str:
    path = report.write(whole_run)
    assert path == whole_run / "report.html"
    return path.read_text()


def test_the_page_stands_alone(html: str) -> None:
    assert len(html) < 2_000_000
    for tag, attrs in Page(html).tags:
        for name in ("src", "href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:")), (tag, attrs)
    assert "@import" not in html and "url(" not in html


def test_a_stage_that_changed_nothing_says_so(tmp_path: Path) -> None:
    b = Builder(tmp_path / "run")
    b.train("sft", "train.sft", 9.0, {"loss": (0.9, 0.5)})
    b.evaluate("sft", 0.3)
    b.stage("dpo", "train.dpo", {"model": ["sft"]}, {"note": "no pairs: unchanged", "steps": 0})
    b.evaluate("dpo", 0.3)
    html = report.write(tmp_path / "run").read_text()
    section = html[html.index('id="training"') : html.index('id="data"')]
    assert "<b>dpo</b> no pairs: unchanged" in section
    line = next(x for x in summary.text(tmp_path / "run").splitlines() if x.startswith("dpo "))
    assert line.endswith("no pairs: unchanged")


def test_what_a_model_said_arrives_as_text(html: str) -> None:
    assert HOSTILE not in html
    page = Page(html)
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.text  # it is there to be read


def test_the_headline_is_the_paired_difference_of_the_scores(whole_run: Path, html: str) -> None:
    def means(name: str) -> dict[str, float]:
        (folder,) = whole_run.glob(f"*-eval-{name}")
        return item_means(read_records(folder / "scores.parquet", Score))

    d = paired(means("sft"), means("grpo"))
    hero = html[html.index('class="hero"') : html.index('class="tiles"')]
    assert f"{points(d.value)} points" in hero
    assert f"95 % interval {points(d.low)} to {points(d.high)}" in hero
    assert d.finding == "helped" and "helped" in hero


def test_the_wording_follows_the_interval(whole_run: Path) -> None:
    found = {c.label: c.difference for c in Evaluations(Run(whole_run)).steps()}
    words = {label: d.finding for label, d in found.items() if d}
    assert words["sft"] == "helped"
    assert words["reason"] == "hurt"
    assert words["dpo-judge"] == "no measurable change"


def test_a_run_that_got_worse_is_said_to_have(tmp_path: Path) -> None:
    run = build(tmp_path / "run", until="sft")
    b = Builder(run)
    b.count = 40
    b.train("grpo", "train.grpo", 9.0, {"loss": (0.0, 0.1)}, model=["sft"])
    b.evaluate("grpo", -0.6)
    html = report.render(run)
    hero = html[html.index('class="hero"') : html.index('class="tiles"')]
    assert "lies below zero" in hero and "▼ hurt" in hero


def test_the_chain_leaves_ablations_out(whole_run: Path) -> None:
    run = Run(whole_run)
    names = [stage.name for stage in run.chain]
    assert names == ["pretrain", "midtrain", "sft", "dpo-pivots", "dpo-judge", "reason", "grpo"]
    evaluations = Evaluations(run)
    assert [e.model.name for e in evaluations.others] == ["dpo-judge-only"]
    pts, judge = evaluations.ablations()
    assert (pts.before, pts.after) == ("sft", "dpo-pivots") and "against none" in pts.label
    assert (judge.before, judge.after) == ("dpo-judge-only", "dpo-judge")
    assert judge.label == "dpo-judge with dpo-pivots against without"


def test_pivots_are_matched_to_their_tokens(whole_run: Path) -> None:
    (search,) = searches(Run(whole_run))
    (folder,) = whole_run.glob("[0-9][0-9]-pivots")
    rows = [json.loads(line) for line in (folder / "pivots.jsonl").read_text().splitlines()]
    assert search.searched == 14 and search.pivots == len(rows) == 42
    assert search.up == sum(row["delta"] > 0 for row in rows)
    largest = max(rows, key=lambda row: abs(row["delta"]))
    solution, token = search.largest[0]
    assert (token.change, token.number) == (largest["delta"], largest["position"])
    assert len(token.alternatives) == 2 and token.alternatives[0].accepted
    assert "".join(t.text for t in solution.tokens).startswith("The boxes hold")
    assert solution.gold and solution.question.startswith("Ada has")


def test_curves_hold_every_stage_and_skip_a_lost_step(html: str) -> None:
    section = html[html.index('id="training"') : html.index('id="data"')]
    for name in ("pretrain", "midtrain", "sft", "dpo-pivots", "reason", "grpo"):
        assert f"<b>{name}</b> loss" in section
    assert "<b>grpo</b> mean reward" in section
    assert "nan" not in section and "None" not in section


def test_a_partial_run_says_what_is_missing(half_run: Path) -> None:
    text = Page(report.render(half_run)).text
    for verb in ("pivots.search", "export.hf", "evals.run of a fine-tuned model and a later one"):
        assert f"Left out: this run has no finished {verb} yet." in text
    assert "after sft" in text


def test_a_run_without_evaluations_still_has_a_page(tmp_path: Path) -> None:
    Builder(tmp_path / "run").stage("items", "synth.items", {}, {"items": 300})
    text = Page(report.render(tmp_path / "run")).text
    assert "No stage of this run has been evaluated yet." in text
    assert text.count("Left out: this run has no finished") == 10


def test_different_items_are_not_compared(tmp_path: Path) -> None:
    run = build(tmp_path / "run", until="sft")
    b = Builder(run)
    b.count, b.items = 40, b.items[:100]
    b.hardness, b.coin = b.hardness[:100], b.coin[:100]
    b.train("dpo", "train.dpo", 9.0, {"loss": (0.7, 0.5)}, model=["sft"])
    b.evaluate("dpo", 1.0)
    assert Evaluations(Run(run)).steps()[-1].difference is None
    assert "not comparable" in report.render(run)


def test_lineage_goes_from_document_to_export(html: str) -> None:
    section = html[html.index('id="lineage"') : html.index('id="export"')]
    whats = re.findall(r"<li><b>(\w+)</b>", section)
    assert whats[:2] == ["Document", "Sample"] and whats[-1] == "Export"
    assert whats.count("Checkpoint") == 7
    assert "dpo-judge-only" not in section


def test_the_same_run_gives_the_same_page(whole_run: Path) -> None:
    assert report.render(whole_run) == report.render(whole_run)


@pytest.mark.parametrize("name", ["summary.png", "summary.svg"])
def test_the_picture(whole_run: Path, half_run: Path, tmp_path: Path, name: str) -> None:
    one = report.figure(whole_run, tmp_path / name).read_bytes()
    two = report.figure(whole_run, tmp_path / f"again-{name}").read_bytes()
    assert one == two and len(one) > 10_000
    report.figure(half_run, tmp_path / name)  # without pivots


def test_the_table_over_seeds(whole_run: Path, half_run: Path, tmp_path: Path) -> None:
    runs = [whole_run, build(tmp_path / "seed-1", seed=1), build(tmp_path / "seed-2", seed=2)]
    table = report.seeds(runs).splitlines()
    assert table[0].startswith("| stage | nano | seed-1 | seed-2 | mean |")
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| dpo-pivots", "| dpo-judge", "| reason", "| grpo",
    ]  # fmt: skip
    assert table[-1].endswith("| helped |")
    means = [float(cell) for cell in table[-1].replace("+", "").split(" | ")[1:5]]
    assert sum(means[:3]) / 3 == pytest.approx(means[3], abs=0.11)
    with pytest.raises(PhikitError, match="no stage after SFT"):
        report.seeds([half_run])


def test_errors_say_where(tmp_path: Path, half_run: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhikitError, match="no finished stage here"):
        report.write(tmp_path / "empty")
    with pytest.raises(PhikitError, match="no such file"):
        report.write(tmp_path / "nowhere")
    write_json(tmp_path / "empty" / "01-items" / "stage.json", {"name": "items"})
    with pytest.raises(PhikitError, match="the key 'verb' is missing"):
        report.write(tmp_path / "empty")
    with pytest.raises(PhikitError, match=r"\.png or \.svg"):
        report.figure(half_run, tmp_path / "a.jpg")


def test_words() -> None:
    assert percent(0.5234).replace("\u202f", " ") == "52.3 %"
    assert [points(d) for d in (0.031, -0.0312, 0.0004)] == ["+3.1", "−3.1", "±0.0"]
    assert [quantity(n).replace("\u202f", " ") for n in (7, 9999, 751104, 5_400_000)] == [
        "7", "9,999", "751 k", "5.40 M",
    ]  # fmt: skip
    assert [duration(s).replace("\u202f", " ") for s in (3.14, 59.6, 75, 7260)] == [
        "3.1 s", "1 min 00 s", "1 min 15 s", "2 h 01 min",
    ]  # fmt: skip


def test_what_a_run_from_a_published_model_gained_and_forgot(tmp_path: Path) -> None:
    b = Builder(tmp_path / "run")
    b.stage("items", "synth.items")
    b.train("start", "train.start", 1.0, {})
    b.train("sft", "train.sft", 9.0, {"loss": (1.0, 0.2)}, model=["start"])
    for model, skill, perplexity, kept in (("start", -2.0, 15.0, 12), ("sft", 1.0, 21.5, 4)):
        b.evaluate(model, skill)
        b.stage(f"text-{model}", "train.perplexity", {"model": [model]}, {"perplexity": perplexity})
        folder = b.stage(f"told-{model}", "evals.ifeval", {"model": [model]}, max_tokens=256)
        verdicts = [
            Verdict(passed=i < kept, score=float(i < kept), reason="", verifier="instructions")
            for i in range(20)
        ]
        scores = [
            Score(task="ifeval", item=f"i{i}", sample=-1, verdict=v, cost=9)
            for i, v in enumerate(verdicts)
        ]
        write_records(folder / "scores.parquet", scores, Score)
    run = Run(b.run)
    headline = Evaluations(run).headline
    assert headline is not None and (headline.before, headline.after) == ("start", "sft")
    before, after = kept_table(run)
    assert (before.model, before.perplexity, before.change) == ("start", 15.0, None)
    assert (after.perplexity, after.max_tokens) == (21.5, 256)
    assert after.followed is not None and after.followed.value == 0.2
    assert after.change is not None and after.change.value == pytest.approx(-0.4)
    assert after.change.finding == "hurt"
    text = Page(report.render(b.run)).text
    assert "What it forgot" in text and "21.50" in text and "20.0" in text
