"""Every shipped dataset type is read, run and made a sample of; wrong files are named."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phikit.cli import app
from phikit.errors import PhikitError
from phikit.synth.declared_run import Seed, candidate, grounded, make
from phikit.synth.declared_types import DeclaredType, find_type, read_type, read_types
from phikit.synth.replies import Outcome, Request

TYPES = read_types()
WORDS = "The river rises in the hills and runs past the old mill to the sea every spring. "


def fill(schema: dict[str, Any] | None, name: str = "") -> Any:
    """Some value that holds to a schema; without one, some text."""
    if schema is None:
        return WORDS * 6
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {k: fill(v, k) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        count = max(2, schema.get("minItems", 2))
        count += count % 2
        return [fill(schema["items"], name) for _ in range(min(count, schema.get("maxItems", 99)))]
    if kind == "integer":
        return max(4, schema.get("minimum", 4))
    if kind == "number":
        return max(4.0, schema.get("minimum", 4.0))
    if kind == "boolean":
        return True
    return "7" if name in ("answer", "result", "final") else WORDS * 6


class Obliging:
    """Answers every request with something of the right form."""

    name = "obliging"

    async def ask(self, request: Request) -> Outcome:
        schema = dict(request.schema) if request.schema else None
        return Outcome("r", "accepted", fill(schema), replies=("r.0",))


def test_there_are_types_of_every_kind() -> None:
    assert len(TYPES) >= 50
    assert len({t.steps[0].prompt for t in TYPES.values()}) == len(TYPES)
    assert {t.seed for t in TYPES.values()} >= {"none", "document", "code"}


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_type_makes_a_sample(name: str) -> None:
    kind = TYPES[name]
    seed = Seed("doc", WORDS * 8) if kind.seed != "none" else Seed()
    made = asyncio.run(make(kind, Obliging(), seed, "s", 3))
    assert made.status == "done", made.reason
    assert len(made.asked) == len(kind.steps)
    found = candidate(made, "obliging")
    assert found.kind == name and found.text
    assert found.plain or (found.messages and found.messages[-1]["role"] == "assistant")
    assert "{{" not in json.dumps([found.text, found.answer, list(found.messages)])
    assert set(found.parents) == ({"doc"} if seed.id else set()) | {"r.0"}
    assert {v.verifier for v in found.verdicts} >= {"length"}
    again = asyncio.run(make(kind, Obliging(), seed, "s", 3))
    assert [r for _, r, _ in again.asked] == [r for _, r, _ in made.asked]


def test_what_is_rejected_says_at_which_step() -> None:
    class Refusing(Obliging):
        async def ask(self, request: Request) -> Outcome:
            return Outcome("r", "rejected", reason="no JSON")

    kind = next(iter(TYPES.values()))
    made = asyncio.run(make(kind, Refusing(), Seed("d", WORDS), "s", 0))
    assert (made.status, len(made.asked)) == ("rejected", 1)
    assert made.reason == f"{kind.steps[0].name}: no JSON"


def test_groundedness_counts_word_trigrams() -> None:
    assert grounded("the river rises, in the hills", WORDS) == 1.0
    assert grounded("a river rises in the hills", WORDS) == 0.75
    assert grounded("something else altogether now", WORDS) == 0.0


OWN = """\
name: mine
purpose: A type of one's own, for the test.
domain: tests
steps:
- name: draft
  prompt: Write something about {{ seed }}.
  reply: {question: string, answer: string}
result:
  messages:
  - {role: user, content: "{{ draft.question }}"}
  - {role: assistant, content: "Answer: {{ draft.answer }}"}
  answer: "{{ draft.answer }}"
validators: {verifier: exact}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("purpose:", "porpose:", r"mine\.yaml:2(.|\n)*no such key(.|\n)*'purpose'"),
        ("{{ seed }}", "{{ sede }}", "'sede' is not known here(.|\n)*'seed'"),
        ("{{ seed }}", "{{ seed", "in a template"),
        ("answer: string}", "answer: sting}", "no type 'sting'(.|\n)*'string'"),
        ("verifier: exact", "verifier: exakt", "'exakt'(.|\n)*'exact'"),
        ("name: mine", "name: yours", "the type is named 'yours'"),
        ("domain: tests", "share: -1\ndomain: tests", r"mine\.yaml:3: share: .*\(it is -1\)"),
        ("domain: tests", "domain: a\ndomain: b", r"mine\.yaml:4: the key 'domain' is there twice"),
        ("{{ draft.question }}", "{{ draft.qestion }}", r"yaml:10: .*'qestion'(.|\n)*'question'"),
        ("about {{ seed }}.", "about {{ seed | shuffled }}.", r"yaml:6: .*'shuffled'"),
        ("- name: draft", "- name: seed", r"yaml:5: the name 'seed' is taken"),
        ("steps:", "vary: {tone: []}\nsteps:", r"yaml:4: vary\.tone: nothing to draw from"),
        ("question: string", "question: {minLength: '3'}", r"yaml:7: .*minLength: '3' is no value"),
        (
            '  answer: "{{ draft.answer }}"\n',
            "",
            r"yaml:12: the verifier 'exact' needs result.answer",
        ),
        ("{verifier", "{min_words: 9, max_words: 5, verifier", r"yaml:13: min_words 9 is above"),
        ("role: assistant", "role: user", r"yaml:11: the last message is the user's"),
        (
            OWN[OWN.index("  messages") :],
            "  turns: draft.answers",
            r"yaml:9: no reply has 'draft.answers'",
        ),
        (OWN[OWN.index("  messages") :], "  turns: draft.answer", r"yaml:9: .* is no list"),
        ("purpose: A", "purpose: [A", r"mine\.yaml:3: not valid YAML"),
        (
            '"{{ draft.answer }}"\nvalidators: {verifier: exact}',
            "thougt\nvalidators: {verifier: format}",
            r"yaml:12: result\.answer: .*knows no demand 'thougt'(.|\n)*'thought'",
        ),
        (
            '"{{ draft.answer }}"\nvalidators: {verifier: exact}',
            "thought, {{ 'no-thought' }}\nvalidators: {verifier: format}",
            r"yaml:12: result\.answer: no response could be right: nothing keeps to both thought",
        ),
        (
            '  answer: "{{ draft.answer }}"\nvalidators: {verifier: exact}',
            "validators: {verifier: instructions}",
            r"yaml:8: result\.answer: the answer is no list of demands",
        ),
        (
            '"{{ draft.answer }}"\nvalidators: {verifier: exact}',
            "draft.answer\nvalidators: {verifier: choice}",
            r"yaml:12: result\.answer: no response could be right: .*'draft\.answer' itself",
        ),
        (
            '"{{ draft.answer }}"\nval',
            '"{{ 1 / 0 }}"\nval',
            r"yaml:12: result\.answer: the template '.*' fails: division",
        ),
        (
            "{verifier",
            '{require: ["{{ draft.answer != 0 }}", draft.answer > 3], verifier',
            r"yaml:13: validators\.require: 'draft\.answer > 3' is True for no sample"
            r"(.|\n)*'\{\{ draft\.answer > 3 \}\}'",
        ),
    ],
)
def test_a_wrong_file_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(PhikitError, match=message):
        read_types(tmp_path)


def test_a_file_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(OWN.replace("own", "öwn").encode("latin-1"))
    with pytest.raises(PhikitError, match=r"mine\.yaml:2: not UTF-8"):
        read_types(tmp_path)


def test_a_text_that_is_cut_off_makes_no_sample() -> None:
    class Cut(Obliging):
        async def ask(self, request: Request) -> Outcome:
            return replace(await super().ask(request), cut=True)

    summary = TYPES["reading-summary"]
    made = asyncio.run(make(summary, Cut(), Seed("d", WORDS), "s", 0))
    assert (made.status, len(made.asked)) == ("rejected", 1)
    assert made.reason == f"draft: cut off at {summary.steps[0].max_tokens} tokens"
    judged = TYPES["algebra-equation"]  # whole JSON is whole
    assert all(step.reply for step in judged.steps)
    assert asyncio.run(make(judged, Cut(), Seed(), "s", 0)).status == "done"


def test_ones_own_types_stand_beside_the_shipped(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN)
    types = read_types(tmp_path)
    assert isinstance(find_type("mine", types), DeclaredType) and len(types) == len(TYPES) + 1
    with pytest.raises(PhikitError, match="did you mean 'mine'"):
        find_type("mien", types)
    with pytest.raises(PhikitError, match="no dataset type"):
        read_types(tmp_path / "empty")
    assert read_type(tmp_path / "mine.yaml") == types["mine"]


@pytest.fixture
def teacher() -> Iterator[str]:
    """A chat endpoint on this machine that gives what the request's schema asks for."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            form = asked.get("response_format", {}).get("json_schema", {}).get("schema")
            value = fill(form)
            text = value if isinstance(value, str) else json.dumps(value)
            body = json.dumps(
                {
                    "choices": [{"index": 0, "finish_reason": "stop",
                                 "message": {"role": "assistant", "content": text}}],
                    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
                }
            ).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


@pytest.mark.parametrize("name", ["algebra-equation", "reading-summary", "code-write-function"])
def test_the_commands(name: str, teacher: str, tmp_path: Path) -> None:
    run = CliRunner().invoke
    listed = run(app, ["synth", "list"]).output
    assert name in listed and f"{len(TYPES)} types" in listed
    assert run(app, ["synth", "show", name]).output.startswith(f"name: {name}")
    (tmp_path / "seed.txt").write_text(WORDS * 8)
    arguments = ["synth", "try", name, "--teacher", teacher, "--name", "m",
                 "--store", str(tmp_path / "r.jsonl")]  # fmt: skip
    if TYPES[name].seed != "none":
        assert "--seed-file" in str(run(app, arguments).output)
        arguments += ["--seed-file", str(tmp_path / "seed.txt")]
    shown = run(app, arguments).output
    assert "=== step" in shown and "=== verdicts" in shown and "length" in shown
    paid = len((tmp_path / "r.jsonl").read_text().splitlines())
    assert paid == len(TYPES[name].steps)
    assert run(app, arguments).output == shown  # from the store: nothing is paid twice
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == paid


def test_trying_says_what_is_wrong_and_shows_what_was_paid_for(
    teacher: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        OWN.replace("answer: string}", "answer: strings}").replace(
            "Answer: {{ draft.answer }}", "{{ draft.answer[7] }}"
        ).replace("{{ seed }}", "it")
    )  # fmt: skip
    (tmp_path / "no-text").write_bytes(b"\xff\xfe\x00")

    def say(name: str, teacher: str, *more: str) -> str:
        words = ["synth", "try", name, "--teacher", teacher, "--name", "m", *more]
        return str(CliRunner().invoke(app, [*words, "--store", str(tmp_path / "r")]).output)

    shown = say("mine", teacher, "--types", str(tmp_path))
    assert "=== step draft" in shown and "=== no sample: rejected: form:" in shown
    unread = say("reading-summary", teacher, "--seed-file", str(tmp_path / "no-text"))
    assert "no-text: no text in UTF-8" in unread
    assert "→ write --name m2" in say("mine", teacher, "--model", "m2")
    assert "→ write --teacher x" in say("mine", teacher, "--url", "x")
    assert "no model 'nowhere' on this machine" in say("algebra-equation", "nowhere")
