"""Leftovers of a killed process: never taken for an artefact, and swept by the next removal."""

from pathlib import Path

import pytest

from phikit import ledger
from phikit.files import atomic_directory, remove_directory, temporary_name, write_atomic


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_removing_what_was_half_removed_removes_the_rest(tmp_path: Path) -> None:
    fill(tmp_path, ".checkpoints.old/step-1/state.json")  # killed between rename and removal
    remove_directory(tmp_path / "checkpoints")
    assert list(tmp_path.iterdir()) == []


def test_removing_takes_the_rest_of_an_earlier_removal_with_it(tmp_path: Path) -> None:
    fill(tmp_path, ".checkpoints.old/step-1/state.json", "checkpoints/step-2/state.json")
    remove_directory(tmp_path / "checkpoints")
    assert list(tmp_path.iterdir()) == []


def test_artefacts_are_not_what_a_kill_left(tmp_path: Path) -> None:
    kept = ("model/config.json", ".hidden/file", "scores.tmp", "a.old")
    fill(tmp_path, *kept, "stage.json", "started.json")
    fill(tmp_path, ".checkpoints.old/step-1/state.json", "model/.x.parquet.tmp", ".model.tmp/a")
    assert sorted(ledger.artefacts(tmp_path)) == sorted(kept)


def test_a_directory_written_over_another_takes_its_place_whole(tmp_path: Path) -> None:
    fill(tmp_path, "model/old.json", ".model.old/older.json")
    with atomic_directory(tmp_path / "model") as new:
        fill(new, "new.json")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json")] == [
        "model/new.json"
    ]


def test_a_directory_that_failed_leaves_the_one_before(tmp_path: Path) -> None:
    fill(tmp_path, "model/old.json")

    def fail() -> None:
        with atomic_directory(tmp_path / "model") as new:
            fill(new, "new.json")
            raise RuntimeError("while writing")

    with pytest.raises(RuntimeError, match="while writing"):
        fail()
    assert [p.name for p in tmp_path.rglob("*.json")] == ["old.json"]


def test_a_file_is_written_beside_and_renamed(tmp_path: Path) -> None:
    temporary_name(tmp_path / "a.txt").write_text("half of it")  # killed while it wrote
    write_atomic(tmp_path / "a.txt", "whole")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "whole")]
