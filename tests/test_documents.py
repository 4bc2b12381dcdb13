"""Every `phikit` and `make` command that the README, docs/ and the help texts show is accepted.

No command is run: each line goes through the program's own parser, so that an option that was
renamed or removed is found here and not by a reader. docs/python.md is run, on a tiny model.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from phikit.chat.format import chat_format
from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.cli import app
from phikit.files import read_json
from phikit.models.checkpoint import save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.recipes import load
from phikit.recipes.registry import Registry
from phikit.recipes.settings import from_settings
from phikit.records import Score, read_records
from phikit.verify.base import VERIFIERS

ROOT = Path(__file__).parent.parent
PYTHON_PAGE = ROOT / "docs/python.md"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PROGRAM = get_command(app)


def groups_and_commands(command: Any = PROGRAM, name: str = "phikit") -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, below in getattr(command, "commands", {}).items():
        yield from groups_and_commands(below, f"{name} {word}")


def command_lines(text: str) -> Iterator[tuple[str, bool]]:
    """The lines that a reader would type, and whether they are whole: those between backticks in a
    sentence may only name a command."""
    text = text.replace("\\\n", " ")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        yield from ((line, True) for line in re.findall(r"\bphikit .*", block))
    yield from ((line, True) for line in re.findall(r"^ {2,4}phikit .*", prose, re.MULTILINE))
    for line in re.findall(r"`(phikit [^`]*)`", prose):
        yield " ".join(line.split()), False


def words(line: str) -> list[str]:
    """A line as the shell splits it, without its comment, up to what the writer left out."""
    line = re.split(r"\s\|\s| {3,}|\s\.\.\.| → ", line.strip())[0]
    return shlex.split(line, comments=True)[1:]


def parse(command: Any, given: list[str], parent: Any = None) -> None:
    """Parses as the program would, down to the last subcommand."""
    try:
        context = command.make_context(command.name, given, parent=parent)
    except typer.Exit:  # --help
        return
    rest = [*getattr(context, "_protected_args", ()), *context.args]
    if isinstance(command, TyperGroup) and rest:
        _, below, rest = command.resolve_command(context, rest)
        assert below is not None
        parse(below, rest, context)


def check(line: str, whole: bool) -> None:
    given = words(line)
    settings = [word for before, word in pairwise(given) if before == "--set"]
    try:
        parse(PROGRAM, given)
    except TyperException as e:
        missing = type(e).__name__ in ("MissingParameter", "NoArgsIsHelpError")
        assert missing and not whole, f"{line}: {e.format_message()}"
    if len(given) < 2:
        return
    if given[0] == "run" and given[1] in load.built_in():
        load.load(given[1], settings)
    package = {"eval": "evals"}.get(given[0], given[0])
    if package in Registry().modules and given[1] not in PROGRAM.commands[given[0]].commands:
        stage = Registry().get(f"{package}.{given[1]}")
        if whole:
            from_settings(stage.config, settings, stage.verb)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_of_the_pages(page: Path, tmp_path: Path, monkeypatch) -> None:
    own_verifier(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line, whole in command_lines(page.read_text()):
        check(line, whole)


@pytest.mark.parametrize("name", [name for name, _ in groups_and_commands()])
def test_commands_of_the_help(name: str) -> None:
    command = dict(groups_and_commands())[name]
    for line, whole in command_lines(f"{command.help}\n{command.epilog or ''}"):
        check(line, whole)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_targets_and_files_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link


def test_the_python_page_runs(tmp_path: Path, monkeypatch) -> None:
    """From top to bottom, with a random model in the place of the one it names."""
    save_random_model(tmp_path / "smollm2")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PYTHON_PAGE.read_text(), re.DOTALL):
        exec(block, names)
    assert names["logits"].shape == (1, len(names["prompt"].ids), 300)
    try:
        item = names["problem"]
        polite, rude = names["get"]("polite").verify([(item, "Please."), (item, "Now!")])
    finally:
        del VERIFIERS["polite"]
    assert (polite.passed, rude.passed) == (True, False)


@pytest.mark.slow
def test_the_own_verifier_of_the_python_page_runs(tmp_path: Path) -> None:
    """Its file and its commands as they stand there, each in a process of its own; only shorter."""
    text = PYTHON_PAGE.read_text()
    own_verifier(tmp_path)
    [line] = re.findall(r"`(\{.*\})`", text)
    (tmp_path / "asked.jsonl").write_text(line)
    save_random_model(tmp_path / "smollm2")
    shorter = {
        "pivots": ["max_tokens=2", "total_tokens=4"],
        "eval": ["samples=1", "max_tokens=2"],
    }
    commands = [words(one) for one, whole in command_lines(text) if whole]
    assert len(commands) == 4
    for given in commands:
        settings = [word for one in shorter.get(given[0], ()) for word in ("--set", one)]
        done = subprocess.run(
            [sys.executable, "-m", "phikit", *given, *settings],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    [score, *_] = read_records(tmp_path / "exam/scores.parquet", Score)
    assert (score.verdict.verifier, score.verdict.reason) == ("polite", "says please")
    assert read_json(tmp_path / "found/stage.json")["summary"]["verdicts_computed"] > 0
    last = commands[-1]
    at = last.index("--verifier")
    done = subprocess.run(
        [sys.executable, "-m", "phikit", *last[:at], "--out", "other"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "no verifier is named 'polite'" in done.stderr


def own_verifier(folder: Path) -> None:
    """Writes the file that the page on Python shows."""
    shown = r"`(\w+\.py)`:\n\n```python\n(.*?)```"
    [(name, text)] = re.findall(shown, PYTHON_PAGE.read_text(), re.DOTALL)
    (folder / name).write_text(text)


def save_random_model(folder: Path) -> None:
    """A model that chats in 300 tokens, at random."""
    model = Decoder(
        DecoderConfig(
            vocab_size=300, hidden_size=32, intermediate_size=48, layers=1, heads=2, kv_heads=1,
            head_dim=16, max_positions=256,
        )
    )  # fmt: skip
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, folder)
    tokenizer = train_bpe(["words and words"] * 4, 300, NANO_SPECIAL)
    config = chat_format(tokenizer).tokenizer_config()
    Tokenizer(tokenizer._fast, config).save(folder)
