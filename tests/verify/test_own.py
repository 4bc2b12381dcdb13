"""A user's own verifiers: by file, module and entry point; what is wrong with them is said."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from phikit import run, single, synth_runs
from phikit.errors import PhikitError
from phikit.evals.stages import EvalConfig
from phikit.files import read_json
from phikit.imports import Sources
from phikit.ledger import done
from phikit.progress import PlainDisplay
from phikit.recipes import load as recipes
from phikit.records import Sample, read_records
from phikit.synth.declared_types import SHIPPED, read_type
from phikit.synth.stage_declared import DECLARED
from phikit.verify import own
from phikit.verify.base import BUILT_IN, VERIFIERS, ByName, Problem, get
from phikit.verify.problems import load_problems

POLITE = """
from phikit.verify.base import register
from phikit.verify.verdicts import verdict

@register("polite")
class Polite:
    name = "polite"

    def verify(self, items):
        print("what it prints is no reply")
        return [verdict("polite", problem.answer in text, "says it") for problem, text in items]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, and the registry as it was."""
    monkeypatch.chdir(tmp_path)
    before = set(VERIFIERS) | set(BUILT_IN)
    yield tmp_path
    for name in VERIFIERS.keys() - before:
        del VERIFIERS[name]


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def installed(folder: Path, package: str, *lines: str) -> None:
    """As pip leaves a package with entry points in a folder."""
    write(f"{folder}/{package}-1.dist-info/METADATA", f"Name: {package}\nVersion: 1\n")
    points = "\n".join(["[phikit.verifiers]", *lines])
    write(f"{folder}/{package}-1.dist-info/entry_points.txt", points)


def refused(spec: str) -> str:
    with pytest.raises(PhikitError) as caught:
        own.load(spec)
    return f"{caught.value.message} → {caught.value.hint}"


def test_a_file_and_what_stands_beside_it() -> None:
    helped = POLITE.replace("problem.answer in text", "helper.holds(problem, text)")
    write("mine/checks.py", f"import helper\n{helped}")
    write("mine/helper.py", "def holds(problem, text): return problem.answer in text")
    assert own.load("mine/checks.py:polite") == own.short("mine/checks.py:polite") == "polite"
    problem = Problem("?", "please", "polite")
    right, wrong = ByName().verify([(problem, "Yes, please."), (problem, "Now!")])
    assert (right.passed, right.score, right.reason) == (True, 1.0, "says it")
    assert (wrong.passed, wrong.score, wrong.verifier) == (False, 0.0, "polite")
    assert own.files(["mine/checks.py:polite", "math", ""]) == ["mine/checks.py"]


def test_a_changed_file_is_loaded_anew() -> None:
    path = write("checks.py", POLITE)
    before = own.marks(["checks.py:polite"])
    path.write_text(POLITE.replace("problem.answer in text", "problem.answer not in text"))
    assert get("polite").verify([(Problem("?", "a", "polite"), "a")])[0].passed
    assert own.marks(["checks.py:polite"]) != before
    assert not get("polite").verify([(Problem("?", "a", "polite"), "a")])[0].passed


def test_a_module_and_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("site/acme/__init__.py", "")
    write("site/acme/checks.py", POLITE)
    write("site/acme/more.py", POLITE.replace("polite", "brief").replace("@register", "# "))
    installed(folder / "site", "acme", "brief = acme.more:Polite")
    assert "no module 'acme.checks'" in refused("acme.checks:polite")
    monkeypatch.syspath_prepend(folder / "site")
    assert own.load("acme.checks:polite") == "polite"
    assert own.files(["acme.checks:polite"]) == [str(folder / "site/acme/checks.py")]
    assert get("brief").verify([(Problem("?", "a", "brief"), "a")])[0].verifier == "brief"
    assert own.files(["brief"]) == [str(folder / "site/acme/more.py")]
    assert "'brief'" in refused("brif")


def test_packages_that_claim_a_taken_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(folder / "site", "acme", "math = acme:Math")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder / "site")
        with pytest.raises(PhikitError, match="package acme offers another under it"):
            get("math")
        assert get("exact").name == "exact"
    installed(folder / "other", "one", "brief = one:Brief")
    installed(folder / "other", "two", "brief = two:Brief")
    monkeypatch.syspath_prepend(folder / "other")
    assert "both offer a verifier 'brief'" in refused("brief")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import numpie", "checks.py:1: ModuleNotFoundError: No module named 'numpie'"),
        ("x = 1\ndef f(:", "checks.py:2: SyntaxError"),
        ("def f():\n    return 1 / 0\nf()", "checks.py:2: ZeroDivisionError"),
        ("import sys\nsys.exit(3)", "checks.py:2: SystemExit: 3"),
        ("import os\nos._exit(3)", "ends its process"),
        ("", '@register("polite") above its class'),
        (POLITE.replace('("polite")', '("polit")'), "did you mean 'polit'?"),
        (POLITE.replace("def verify", "def verified"), "a Polite, has no method verify"),
        (POLITE.replace("name =", "def __init__(self):\n        self.x = y\n    name ="),
         "checks.py:8: NameError"),
        (POLITE.replace('("polite")', '("math")'), "checks.py:5: 'math' is the name of a built-in"),
        (POLITE.replace('("polite")', '("a:b")'), "checks.py:5: 'a:b' is no name"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(text: str, said: str) -> None:
    write("checks.py", text)
    assert said in refused("checks.py:polite")
    assert "polite" not in VERIFIERS


def test_names_that_cannot_be_loaded() -> None:
    write("checks.py", POLITE)
    assert "no file chekcs.py → did you mean 'checks.py'?" in refused("chekcs.py:polite")
    assert "write math for that one" in refused("checks.py:math")
    assert "write FILE.py:NAME" in refused("che cks:polite")
    own.load("checks.py:polite")
    write("other.py", POLITE)
    assert "checks.py has registered a verifier 'polite' as well" in refused("other.py:polite")
    VERIFIERS["rude"] = lambda: get("exact")
    write("rude.py", POLITE.replace("polite", "rude"))
    assert "this process has registered" in refused("rude.py:rude")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError(text)", "checks.py:12: KeyError: 'an answer'"),
        ("return None", "not a list with a Verdict for each answer"),
        ("return []", "not a list with a Verdict for each answer"),
        ('return [verdict("polite", True, "", float("nan"))]', "nan, which is no number"),
    ],
)
def test_a_verifier_that_fails_stops_the_run(body: str, said: str) -> None:
    start = POLITE.partition("        return [")[0]
    write("checks.py", f"{start}        [(problem, text)] = items\n        {body}\n")
    own.load("checks.py:polite")
    with pytest.raises(PhikitError, match="fails on the answer 'an answer'") as caught:
        get("polite").verify([(Problem("?", "", "polite"), "an answer")])
    assert said in caught.value.message


def test_it_cannot_hang_or_kill_the_run() -> None:
    start, _, end = POLITE.partition("        return [")
    body = """        import os, time
        if "sleep" in items[0][1]: time.sleep(60)
        if "die" in items[0][1]: os._exit(1)
        if "eat" in items[0][1]: bytearray(8 << 30)
"""
    hurried = start.replace('name = "polite"', 'name = "polite"\n    seconds = 1')
    write("checks.py", f"{hurried}{body}        return [{end}")
    own.load("checks.py:polite")
    problem = Problem("?", "fine", "polite")
    verdicts = get("polite").verify([(problem, text) for text in ("fine", "sleep", "die", "fine")])
    assert [v.passed for v in verdicts] == [True, False, False, True]
    assert "more than 1 s, or its process ended" in verdicts[1].reason
    with pytest.raises(PhikitError, match="MemoryError"):
        get("polite").verify([(problem, "eat")])


def test_data_loads_no_code() -> None:
    """A file of problems and a type's file name verifiers; only a user's word loads one."""
    trap = "import pathlib\npathlib.Path('sprung').touch()\n"
    write("checks.py", trap + POLITE)
    line = '{{"prompt": "?", "answer": "a", "verifier": "{}"}}'
    kind = SHIPPED / "deduction-chain.yaml"
    text = kind.read_text()
    for name in ("checks.py:polite", "./checks.py:polite", "checks:polite", "polite"):
        problems = write("p.jsonl", line.format(name))
        with pytest.raises(PhikitError, match=r"p\.jsonl:1: no verifier is named"):
            load_problems(problems)
        with pytest.raises(PhikitError, match="never by a file of problems"):
            ByName().verify([(Problem("?", "a", name), "a")])
        named = text.replace("verifier: exact", f"verifier: {name}")
        with pytest.raises(PhikitError, match="yaml:52: no verifier is named"):
            read_type(write("deduction-chain.yaml", named))
        assert not Path("sprung").exists()
    own.load("checks.py:polite")
    assert Path("sprung").exists()
    assert load_problems(write("p.jsonl", line.format("polite")))[0].verifier == "polite"
    named = text.replace("verifier: exact", "verifier: polite")
    assert read_type(write("deduction-chain.yaml", named)).validators.verifier == "polite"
    with pytest.raises(PhikitError, match="no verifier is named"):
        load_problems(write("p.jsonl", line.format("checks.py:polite")))


RECIPE = """
name: own
stages:
  - name: problems
    verb: train.import
    config: {file: p.jsonl, verifier: "checks.py:polite"}
"""


def test_a_recipe_runs_again_when_the_verifier_changes(folder: Path) -> None:
    write("checks.py", POLITE)
    write("p.jsonl", '{"prompt": "?", "answer": "a"}')
    write("r.yaml", RECIPE)

    def ran() -> tuple[str, ...]:
        return run.run(recipes.load("r.yaml"), folder / "out", PlainDisplay(StringIO())).ran

    assert ran() == ("problems",) and ran() == ()
    [sample] = read_records(folder / "out/01-problems/samples.parquet", Sample)
    assert sample.verifier == "polite"
    again = recipes.load(str(folder / "out"))  # the resolved recipe names the file, too
    assert run.plan(again, Sources())[0].address == done(folder / "out/01-problems")["address"]
    write("checks.py", POLITE.replace("says it", "says so"))
    [cast] = run.preview(recipes.load("r.yaml"), folder / "out")
    assert cast.why == "checks.py changed"
    assert ran() == ("problems",)


@pytest.mark.parametrize(
    ("settings", "told"),
    [(['verifiers=["checks.py:polite"]'], ()), ([], ("checks.py:polite",))],
)
def test_a_stage_alone_does_not_go_on_with_another_verifier(
    settings: list[str], told: tuple[str, ...], folder: Path
) -> None:
    """Its new verdicts would stand beside the old ones."""
    write("checks.py", POLITE)

    def begin() -> None:
        single.run("synth", "declared", [], settings, folder / "out", 0, 1, verifiers=told)

    for _ in range(2):  # begun, and gone on with
        with pytest.raises(PhikitError, match="no teacher"):
            begin()
    write("checks.py", POLITE.replace("says it", "says so"))
    with pytest.raises(PhikitError, match=r"another run was begun here: checks\.py(\S+)? changed"):
        begin()


def test_settings_that_name_one_are_checked_when_they_are_read() -> None:
    write("checks.py", "import numpie")
    write("r.yaml", RECIPE)
    with pytest.raises(PhikitError, match=r"r\.yaml:6: 'verifier'(.|\n)*checks\.py:1: ModuleNotF"):
        recipes.load("r.yaml")
    write("checks.py", POLITE)
    assert EvalConfig(verifiers={"math": "checks.py:polite"})
    assert "polite" in VERIFIERS


def test_a_corpus_is_told_what_its_types_name() -> None:
    write("checks.py", POLITE)
    config = synth_runs.config_of(synth_runs.Job((), (), "model", verifiers=("checks.py:polite",)))
    assert config.verifiers == ("checks.py:polite",)
    assert DECLARED.reads(config) == ["model", "checks.py"]


def test_a_stage_alone_knows_the_verifiers_it_is_told(folder: Path) -> None:
    write("checks.py", POLITE)
    write("p.jsonl", '{"prompt": "?", "answer": "a", "verifier": "polite"}')
    told = {"verifiers": ["checks.py:polite"]}
    single.run("train", "import", [], ["file=p.jsonl"], folder / "out", 0, 1, **told)
    assert read_records(folder / "out/items.parquet", Sample)[0].verifier == "polite"
    assert read_json(folder / "out/stage.json")["verifiers"] == own.marks(["checks.py:polite"])
    with pytest.raises(PhikitError, match=r"data\.documents judges no answers"):
        single.run("data", "documents", ["items=."], ["reader.root=."], folder / "no", 0, 1, **told)
