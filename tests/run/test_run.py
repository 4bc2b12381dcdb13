"""The runner: each stage once, whatever happens in between."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy_stages import REGISTRY

from phikit import ledger
from phikit.errors import PhikitError
from phikit.files import read_json
from phikit.imports import Sources
from phikit.progress import PlainDisplay
from phikit.recipes.load import load
from phikit.run import preview, run, stage_seed

HERE = Path(__file__).parent
#: phikit's sources, parsed once for all runs here, by the hash of their text
PARSED: dict[str, Any] = {}


def go(recipe_file: Path, out: Path, *settings: str, **options: Any) -> tuple[list[str], str]:
    """Runs the toy recipe; returns which stages ran, and what was printed."""
    stream = io.StringIO()
    recipe = load(str(recipe_file), settings, registry=REGISTRY)
    sources = Sources(cache=PARSED)
    outcome = run(recipe, out, PlainDisplay(stream), sources=sources, **options)
    PARSED.update(sources.cached)
    return list(outcome.ran), stream.getvalue()


def results(out: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Of every finished stage: its address, and the hash of each artefact."""
    return {
        folder.name: (record["address"],
                      {n: a["sha256"] for n, a in record["artefacts"].items()})
        for folder, record in ledger.stages(out)
    }  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_everything_runs_once(recipe_file: Path, out: Path) -> None:
    assert go(recipe_file, out)[0] == ["one", "two", "sum", "twice"]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert go(recipe_file, out) == ([], "")
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    before.pop(out / ".lock"), after.pop(out / ".lock")
    assert before == after


def test_stage_folders_and_records(recipe_file: Path, out: Path) -> None:
    go(recipe_file, out)
    assert [f.name for f, _ in ledger.stages(out)] == ["01-one", "02-two", "03-sum", "04-twice"]
    record = read_json(out / "03-sum" / "stage.json")
    values = [read_json(out / n / "result.json")["value"] for n in ("01-one", "02-two", "03-sum")]
    assert values[2] == values[0] + values[1] + 1 == record["summary"]["value"]
    assert record["inputs"] == {"first": ["one"], "more": ["two"]}
    assert record["cost"]["peak_bytes"] > 1e6
    assert set(record["artefacts"]) == {"result.json", "droppings"}
    events = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["started", "finished"] * 4
    assert events[0]["threads"] == 1
    assert {"python", "torch", "phikit"} <= events[0]["versions"].keys()


def test_a_changed_setting_reruns_only_what_depends_on_it(recipe_file: Path, out: Path) -> None:
    go(recipe_file, out)
    first = results(out)
    assert go(recipe_file, out, "sum.plus=2")[0] == ["sum", "twice"]
    assert results(out)["04-twice"] != first["04-twice"]
    # back and forth: nothing runs, the superseded folders return
    assert go(recipe_file, out)[0] == []
    assert results(out) == first
    assert go(recipe_file, out, "sum.plus=2")[0] == []


def test_of_each_stage_one_superseded_version_is_kept(recipe_file: Path, out: Path) -> None:
    def kept() -> list[str]:
        return sorted(f.name.rpartition("-")[0] for f in (out / ".superseded").iterdir())

    go(recipe_file, out)
    for plus in (2, 3, 4):
        go(recipe_file, out, f"sum.plus={plus}")
        assert kept() == ["03-sum", "04-twice"]
    assert go(recipe_file, out, "sum.plus=3")[0] == []
    assert go(recipe_file, out, "sum.plus=2")[0] == ["sum", "twice"]
    assert go(recipe_file, out, "two.start=1")[0] == ["two", "sum", "twice"]
    assert kept() == ["02-two", "03-sum", "04-twice"]


def test_seed_and_threads_rerun_everything(recipe_file: Path, out: Path) -> None:
    go(recipe_file, out)
    assert len(go(recipe_file, out, "seed=4")[0]) == 4
    assert len(go(recipe_file, out, "threads=2")[0]) == 4


def test_comments_and_order_of_keys_rerun_nothing(recipe_file: Path, out: Path) -> None:
    go(recipe_file, out)
    text = recipe_file.read_text().replace("{steps: 3, start: 9}", "{start: 9, steps: 3} # same")
    recipe_file.write_text("# a comment\n" + text)
    assert go(recipe_file, out)[0] == []


def test_an_inserted_stage_only_renumbers_the_later_ones(recipe_file: Path, out: Path) -> None:
    go(recipe_file, out)
    old = recipe_file.read_text()
    extra = "stages:\n  - name: extra\n    verb: toy.count\n"
    recipe_file.write_text(old.replace("stages:\n", extra))
    assert go(recipe_file, out)[0] == ["extra"]
    assert [f.name for f, _ in ledger.stages(out)][-1] == "05-twice"
    recipe_file.write_text(old)
    assert go(recipe_file, out)[0] == []
    assert len(ledger.stages(out)) == 4


def test_a_renamed_stage_is_another_random_stream(recipe_file: Path, out: Path) -> None:
    assert stage_seed(3, "one") != stage_seed(3, "two")
    go(recipe_file, out)
    recipe_file.write_text(recipe_file.read_text().replace("twice", "thrice"))
    assert go(recipe_file, out)[0] == ["thrice"]
    assert not (out / "04-twice").exists()


def test_until(recipe_file: Path, out: Path) -> None:
    assert go(recipe_file, out, until="two")[0] == ["one", "two"]
    assert go(recipe_file, out)[0] == ["sum", "twice"]
    with pytest.raises(PhikitError, match="did you mean 'two'"):
        go(recipe_file, out, until="tow")


def test_dry_run_says_what_and_why_and_writes_nothing(recipe_file: Path, out: Path) -> None:
    def why(*settings: str) -> list[str]:
        return [c.why for c in preview(load(str(recipe_file), settings, registry=REGISTRY), out)]

    assert why() == ["new"] * 4
    assert not out.exists()
    go(recipe_file, out, until="sum")
    assert why() == ["", "", "", "new"]
    assert why("two.steps=9") == ["", "steps was 3, now 9", "its input more changed", "new"]
    assert why("seed=9")[0].startswith("seed was ")


def test_a_changed_file_outside_the_run_reruns_what_read_it(recipe_file: Path, out: Path) -> None:
    own, folder = out.parent / "own.jsonl", out.parent / "documents"
    own.write_text("one")
    folder.mkdir()
    for path, new in ((own, own), (folder, folder / "more.txt")):
        setting = f"two.file={path}"
        go(recipe_file, out, setting)
        assert go(recipe_file, out, setting)[0] == []
        new.write_text("another")
        recipe = load(str(recipe_file), [setting], registry=REGISTRY)
        assert [c.why for c in preview(recipe, out)][:2] == ["", f"{path} changed"]
        assert go(recipe_file, out, setting)[0] == ["two", "sum", "twice"]


def test_fresh_starts_again(recipe_file: Path, out: Path) -> None:
    go(recipe_file, out)
    (out / "notes.txt").write_text("mine")
    assert len(go(recipe_file, out, fresh=True)[0]) == 4
    assert (out / "notes.txt").exists()


# --- Being killed --------------------------------------------------------------------------------

_CHILD = """
import sys; sys.path.insert(0, sys.argv[3])
from pathlib import Path
from toy_stages import REGISTRY
from phikit.progress import PlainDisplay
from phikit.recipes.load import load
from phikit.run import run
print("ready", flush=True)
recipe = load(sys.argv[1], sys.argv[4:], registry=REGISTRY)
run(recipe, Path(sys.argv[2]), PlainDisplay())
"""


def child(recipe_file: Path, out: Path, *settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(recipe_file), str(out), str(HERE), *settings],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_killed_at_random_instants_it_ends_the_same(recipe_file: Path, tmp_path: Path) -> None:
    settings = ("one.steps=60", "two.steps=40", "toy.pause=0.01")
    go(recipe_file, tmp_path / "whole", *settings)
    broken, dice, kills = tmp_path / "broken", random.Random(0), 0
    while kills < 10:
        process = child(recipe_file, broken, *settings)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(dice.uniform(0.0, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert not errors
        if process.returncode == 0:  # all done before the kill: take the last stages away
            shutil.rmtree(broken / "02-two")
    go(recipe_file, broken, *settings)
    assert results(broken) == results(tmp_path / "whole")


def test_killed_before_anything_ran_it_is_still_a_run_directory(
    recipe_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for point in ("phikit.run.plan", "phikit.run.Shelf.arrange", "phikit.run._Runner.run"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(point, killed)
            go(recipe_file, out)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("phikit.run.plan", killed)
        (out / "notes.txt").write_text("mine")
        go(recipe_file, out, fresh=True)
    assert len(go(recipe_file, out)[0]) == 4


def test_a_resumable_stage_goes_on_and_another_starts_empty(recipe_file: Path, out: Path) -> None:
    process = child(recipe_file, out, "one.steps=500", "one.pause=0.01")
    metrics = out / "01-one" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        time.sleep(0.01)
    process.kill()
    process.wait()
    rows = metrics.read_text().splitlines()[:5]
    settings = ("one.steps=500", "one.pause=0.01")
    recipe = load(str(recipe_file), settings, registry=REGISTRY)
    assert preview(recipe, out)[0].why == "was stopped; goes on"
    metrics.write_text("\n".join(rows) + '\n{"step": 5, "st')  # a torn line
    inode = metrics.stat().st_ino
    process = child(recipe_file, out, *settings)
    while metrics.read_text().count("\n") < 8:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert metrics.read_text().splitlines()[:5] == rows
    assert metrics.stat().st_ino == inode


def test_a_killed_stage_that_cannot_resume_finds_an_empty_folder(
    recipe_file: Path, out: Path
) -> None:
    go(recipe_file, out)
    (out / "03-sum" / "stage.json").unlink()  # as if killed after the droppings
    assert go(recipe_file, out)[0] == ["sum"]


# --- What goes wrong -----------------------------------------------------------------------------


def with_failure(recipe_file: Path, how: str) -> None:
    entry = "  - {name: bad, verb: toy.fail, inputs: {first: one}, config: {how: HOW}}\n"
    recipe_file.write_text(recipe_file.read_text() + entry.replace("HOW", how))


@pytest.mark.parametrize(
    ("how", "message"),
    [("error", "the toy is broken"), ("disk", "the disk is full: stage 'bad', writing")],
)
def test_a_failed_stage_leaves_the_others_done(
    recipe_file: Path, out: Path, how: str, message: str
) -> None:
    with_failure(recipe_file, how)
    with pytest.raises(PhikitError, match=message):
        go(recipe_file, out)
    assert len(ledger.stages(out)) == 4
    last = json.loads((out / "ledger.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "failed"
    assert message.split(":")[0] in last["error"]
    assert go(recipe_file, out, "bad.how=fine")[0] == ["bad"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full(recipe_file: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)])
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        (disk / "filler").write_bytes(b"x" * 150_000)
        with pytest.raises(PhikitError, match="the disk is full"):
            go(recipe_file, disk / "run", "two.steps=2500")
        assert [f.name for f, _ in ledger.stages(disk / "run")] == ["01-one"]
        (disk / "filler").unlink()
        assert go(recipe_file, disk / "run", "two.steps=2500")[0] == ["two", "sum", "twice"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_corrupt_artefact_is_made_again(recipe_file: Path, out: Path) -> None:
    go(recipe_file, out)
    whole = results(out)
    damaged = out / "02-two" / "result.json"
    damaged.write_text(damaged.read_text()[:-3])
    ran, said = go(recipe_file, out)
    assert ran == ["two"]
    assert f"{damaged} has" in said and "made again" in said
    assert results(out) == whole
    damaged.unlink()
    assert go(recipe_file, out)[0] == ["two"]


def test_verify_finds_what_the_size_does_not_show(recipe_file: Path, out: Path) -> None:
    go(recipe_file, out)
    damaged = out / "03-sum" / "result.json"
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(data)
    assert go(recipe_file, out)[0] == []
    ran, said = go(recipe_file, out, verify=True)
    assert ran == ["sum"]
    assert "SHA-256" in said


def test_two_runs_on_one_directory(recipe_file: Path, out: Path) -> None:
    ledger.open_folder(out)
    with (
        ledger.locked(out),
        pytest.raises(PhikitError, match=f"another run is working here \\(process {os.getpid()}"),
    ):
        go(recipe_file, out)
    assert len(go(recipe_file, out)[0]) == 4


def test_a_folder_with_other_things_in_it_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(PhikitError, match="not a run directory"):
        go(recipe_file, tmp_path / "home")
    with pytest.raises(PhikitError, match=r"thesis\.txt"):
        go(recipe_file, tmp_path / "home" / "thesis.txt" / "run")


def test_an_unwritable_folder(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PhikitError, match=r"/proc/phikit"):
        go(recipe_file, Path("/proc/phikit"))
