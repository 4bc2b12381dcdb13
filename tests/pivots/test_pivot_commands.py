"""`phikit pivots run | show | export | plan` on a tiny model: whole, killed, resumed, refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pivot_fixtures import SETTINGS, job

from phikit import pivot_page, pivot_runs
from phikit.chat.load import load_tokenizer
from phikit.commands import pivots as commands
from phikit.errors import PhikitError
from phikit.files import write_json
from phikit.pivots import domains, plan
from phikit.pivots.export import export
from phikit.pivots.read import search_folder
from phikit.records import Pair, read_records
from phikit.verify.base import VERIFIERS
from phikit.verify.problems import load_problems


def test_a_search_from_the_command_line_and_all_that_reads_it(
    found: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    search = search_folder(found)
    pairs = search.pairs()
    assert len(search.pivots) == search.record["summary"]["pivots"] >= 2 and pairs
    shown = pivot_runs.table(found)
    assert f"{len(search.pivots)} confirmed pivots" in shown and "kind-0" in shown

    decode = load_tokenizer(search.model).decode
    assert export(pairs, "trl", tmp_path / "t.parquet", decode) == len(pairs)
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert [tuple(r["chosen_ids"]) for r in rows] == [p.chosen_ids for p in pairs]
    assert rows[0]["prompt"] == decode(pairs[0].prompt_ids)
    export(pairs, "jsonl", tmp_path / "t.jsonl", decode)
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [p.id for p in pairs]
    export(pairs, "parquet", tmp_path / "p.parquet", decode)
    assert read_records(tmp_path / "p.parquet", Pair) == pairs
    with pytest.raises(PhikitError, match="did you mean 'trl'"):
        export(pairs, "tlr", tmp_path / "x", decode)
    with pytest.raises(PhikitError, match="no pairs"):
        export([], "trl", tmp_path / "x", decode)

    page = pivot_page.write(found, tmp_path / "page.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(data) == search.record["summary"]["kept"]
    drawn = sum("alt" in t for s in data for t in s["tokens"])
    assert drawn == len(search.pivots)
    assert data[0]["tree"][0][:2] == [0, 0] and data[0]["points"][-1][0] == len(data[0]["tokens"])
    assert "question 0" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_the_forecast_scales_the_pilot(found: Path) -> None:
    search = search_folder(found)
    one = plan.forecast(search, 10, tokens_per_s=100.0)
    summary = search.record["summary"]
    assert one.tokens.value == pytest.approx(10 * summary["tokens"] / summary["pairs"])
    assert one.tokens.low <= one.tokens.value <= one.tokens.high
    assert one.hours.value == pytest.approx(one.tokens.value / 100 / 3600)
    many = plan.forecast(search, 1000, tokens_per_s=100.0)
    assert many.tokens.value == pytest.approx(100 * one.tokens.value)
    text = plan.text(one, price_per_hour=3600.0, price_per_million=1.0)
    assert "problems to try" in text and "a larger one narrows" in text
    assert f"{one.tokens.value:,.0f}" in text and f"{one.tokens.value / 1e6:,.2f}" in text
    assert plan.forecast(search, 10).tokens_per_s == pytest.approx(
        summary["tokens"] / search.record["cost"]["seconds"]
    )


def test_who_exports_for_trl_is_told_to_keep_the_ids(
    found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.export([found], "trl", tmp_path / "t.parquet")
    assert "def _prepare_dataset" in capsys.readouterr().out
    commands.export([found], "jsonl", tmp_path / "t.jsonl")
    assert "def _prepare_dataset" not in capsys.readouterr().out


def test_the_time_of_killed_attempts_counts(made: dict[str, Path], tmp_path: Path) -> None:
    """Else the forecast would divide all tokens by the last attempt's seconds."""
    out, told = tmp_path / "out", job(made, settings=("max_tokens=2", "total_tokens=4"))
    out.mkdir()
    (out / ".job.json.tmp").write_text('{"mod')  # killed in the very first write
    pivot_runs.run(told, out)
    (out / "stage.json").unlink()
    begun = json.loads((out / "started.json").read_text())
    write_json(out / "started.json", begun | {"at": begun["at"] - 1000.0})
    record = pivot_runs.run(told, out)
    assert 1000.0 < record["cost"]["seconds"] < 1100.0
    assert plan._rate(search_folder(out)) < record["summary"]["tokens"] / 1000.0


def test_done_is_done_and_another_search_is_refused(
    found: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    said: list[str] = []
    before = {p: p.stat().st_mtime_ns for p in found.glob("[a-z]*")}
    pivot_runs.run(job(made), found, said.append)
    assert "done" in said[0]
    assert {p: p.stat().st_mtime_ns for p in found.glob("[a-z]*")} == before
    for changed, message in [
        ({"settings": (*SETTINGS, "gap=0.3")}, "gap was 0.2, now 0.3"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"instruction": "Be brief."}, "the problems are others"),
    ]:
        with pytest.raises(PhikitError, match=message):
            pivot_runs.run(job(made, **changed), found)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(PhikitError, match=r"not empty \(it holds thesis.txt\)"):
        pivot_runs.run(job(made), tmp_path / "full")
    with pytest.raises(PhikitError, match="did you mean 'gap'"):
        pivot_runs.run(job(made, settings=("gpa=0.3",)), tmp_path / "new")
    with pytest.raises(PhikitError, match="no search is here"):
        search_folder(tmp_path / "full")


_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from pivot_fixtures import FirstByte
from phikit import pivot_runs
from phikit.verify.base import VERIFIERS
VERIFIERS["first-byte"] = FirstByte
root = Path({root!r})
job = pivot_runs.Job(root / "sft" / "model", root / "problems", settings={settings!r})
print("begun", flush=True)
pivot_runs.run(job, root / "killed")
"""


@pytest.mark.slow
def test_killed_at_any_instant_it_goes_on_without_drawing_again(
    found: Path, made: dict[str, Path]
) -> None:
    root = made["model"].parent
    script = _KILLED.format(tests=str(Path(__file__).parent), root=str(root), settings=SETTINGS)
    killed = root / "killed"
    rounds: list[int] = []
    for number in range(8):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 60
        aim = number + 1  # so that a round at least is drawn before each kill
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(killed.glob("rounds/*.round"))) >= aim:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rounds.append(len(list(killed.glob("rounds/*.round"))))
    assert rounds == sorted(rounds) and rounds[0] >= 1
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    for name in ("pairs.parquet", "pivots.jsonl", "searches.jsonl"):
        assert (killed / name).read_bytes() == (found / name).read_bytes(), name
    for file in (found / "rounds").iterdir():
        assert (killed / "rounds" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"p\.jsonl:2: not valid JSON"),
        ("[1]", r"p\.jsonl:2: a list, not an object"),
        ('{"prompt": "q"}', r"p\.jsonl:2: has no 'answer'"),
        ('{"promt": "q", "answer": "1"}', r"p\.jsonl:2: has no text under 'prompt'(.|\n)*'promt'"),
        ('{"prompt": "q", "answer": "1", "verifier": "maths"}', "did you mean 'math'"),
        ('{"messages": [], "answer": "1"}', "is no list of messages"),
        ('{"messages": [{"role": "robot", "content": "x"}], "answer": "1"}', "not a message"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "answer": ""}', "nothing is asked"),
        ('{"prompt": " ", "answer": "1"}', r"p\.jsonl:2: has no text under 'prompt'"),
        ('{"prompt": "q", "answer": null}', r"p\.jsonl:2: has no 'answer'"),
        ('{"prompt": "q", "answer": NaN}', r"p\.jsonl:2: NaN is no number"),
        ('{"prompt": "q", "answer": 1e999}', r"p\.jsonl:2: 1e999 is no number"),
        ('{"prompt": "q", "answer": ' + "9" * 5000 + "}", r"p\.jsonl:2: Exceeds the limit"),
        ('{"prompt": "\\ud83d", "answer": "1"}', r"p\.jsonl:2: .*half a character"),
        ('{"prompt": ' + "[" * 100_000, r"p\.jsonl:2: nested too deeply"),
        (b'{"prompt": "\xff", "answer": "1"}', r"p\.jsonl:2: not UTF-8 \(byte 13\)"),
        ('{"prompt": "q", "answer": "", "verifier": "number"}', "no response could be right"),
        ('{"prompt": "q", "answer": "Paris", "verifier": "choice"}', "no letter in the answer"),
        (
            '{"prompt": "q", "answer": "6 * 7 = 42 #### 42", "verifier": "number"}',
            "does not even accept",
        ),
    ],
)
def test_a_wrong_problem_is_named(line: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    wrong = line.encode() if isinstance(line, str) else line
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "fine", "answer": "1"}\r\n' + wrong + b"\n")
    with pytest.raises(PhikitError, match=message):
        load_problems(path, "math")


def test_problems_out_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"question": "2 + 2?", "answer": 4, "domain": "sums", "level": 1}\n\n'
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], '
        '"answer": {"tests": []}, "verifier": "code"}\n'
    )
    first, second = load_problems(path, "math")
    assert (first.kind, first.answer, first.verifier) == ("sums", "4", "math")
    assert first.meta == {"level": 1} and first.messages[0]["content"] == "2 + 2?"
    assert (second.verifier, second.answer) == ("code", '{"tests":[]}')
    with pytest.raises(PhikitError, match="names no verifier"):
        load_problems(path)
    with pytest.raises(PhikitError, match="not a kind of file"):
        load_problems(tmp_path / "p.csv", "math")
    path.write_text("\n\n")
    with pytest.raises(PhikitError, match=r"holds no problem\n"):
        load_problems(path, "math")
    other = tmp_path / "other.parquet"
    other.write_text("PAR2")
    with pytest.raises(PhikitError, match=r"not a readable Parquet file(.|\n)*or JSON lines"):
        load_problems(other, "math")


def test_a_search_is_of_its_verifiers_code(made: dict[str, Path], tmp_path: Path) -> None:
    file, path = tmp_path / "checks.py", tmp_path / "p.jsonl"
    file.write_text(
        "from phikit.verify.base import register\n"
        "from phikit.verify.verdicts import verdict\n"
        '@register("own")\n'
        "class Own:\n"
        "    def verify(self, items):\n"
        '        return [verdict("own", bool(text), "") for _, text in items]\n'
    )
    path.write_text('{"prompt": "q", "answer": "1"}\n')
    settings = ("max_tokens=2", "total_tokens=4")
    own = job(made, problems=path, verifier=f"{file}:own", settings=settings)
    pivot_runs.run(own, tmp_path / "out")
    said: list[str] = []
    pivot_runs.run(own, tmp_path / "out", said.append)
    assert "done" in said[0]
    file.write_text(file.read_text().replace("bool(text)", "not text"))
    with pytest.raises(PhikitError, match="the verifier's code is another"):
        pivot_runs.run(own, tmp_path / "out")
    del VERIFIERS["own"]


def test_what_is_left_out_is_counted(made: dict[str, Path], tmp_path: Path) -> None:
    """A repeated problem is asked once, and one with another answer is another problem."""
    path = tmp_path / "p.jsonl"
    rows = [("a", "1"), ("a", "1"), ("a", "2"), ("long " * 100, "1")]
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    out = tmp_path / "out"
    settings = ("max_tokens=2", "filter_min=2", "filter_max=2", "total_tokens=4")
    pivot_runs.run(job(made, problems=path, verifier="math", settings=settings), out)
    assert (
        search_folder(out).record["summary"] | {"questions": 2, "repeated": 1, "too_long": 1}
        == (search_folder(out).record["summary"])
    )
    assert "left out: 1 problems that repeat another, 1 that leave" in pivot_runs.table(out)


def test_pairs_are_counted_as_in_the_report() -> None:
    rows = [("number", "sums", "pivot"), ("choice", "q", "pivot"), ("code", "trace", "pivot"),
            ("code", "debug-rust", "pivot"), ("math", "sums", "refusal"),
            ("format", "f", "pivot")]  # fmt: skip
    counts = domains.count(
        Pair(prompt_ids=(1,), chosen_ids=(2,), rejected_ids=(3,), kind=kind,
             evidence={"verifier": verifier, "domain": name})
        for verifier, name, kind in rows
    )  # fmt: skip
    assert list(counts.values()) == [1, 1, 1, 1, 1, 1]
    table = domains.table(counts)
    assert "250,297" in table and "16.7 %" in table


@pytest.mark.slow  # it waits for a server
def test_a_search_over_an_endpoint_is_the_local_one(
    found: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    model = made["model"] / "model"
    command = [sys.executable, "-m", "phikit", "serve", f"tiny={model}", "--port", "0",
               "--cache", "0.02"]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        lines = iter(server.stderr.readline, "")
        url = next(m[1] for line in lines if (m := re.search(r"listening on (http://\S+)", line)))
        out = tmp_path / "remote"
        pivot_runs.run(job(made, url=f"{url}/v1", name="tiny"), out)
        assert (out / "pivots.jsonl").read_bytes() == (found / "pivots.jsonl").read_bytes()
        assert search_folder(out).pairs() == search_folder(found).pairs()
        with pytest.raises(PhikitError, match=r"endpoint was tiny at http.*now none"):
            pivot_runs.run(job(made), out)
    finally:
        server.terminate()
        server.wait()
