"""Workflows: organic documents in, exercises out, each kept only if its validators allow.

Rewriting turns prose into exercises: a sentence with a word left out, a definition into a question
(the "web rewrites" of the pretraining mixture). Instruction reversal turns a function into the
instruction that it fulfils; the function's calls are recorded in the sandbox, and a solution is
right if it reproduces their results. Each candidate names the document it came from.
"""

from __future__ import annotations

import ast
import builtins
import doctest
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from phikit.records import Document
from phikit.synth.teacher import Candidate
from phikit.verify.sandbox import Check, Outcome, Program, run_python

PROSE = ("web", "acquired")
_STOP_WORDS = frozenset(
    (
        "about", "after", "also", "because", "been", "before", "being", "between", "both",
        "could", "does", "each", "every", "from", "have", "into", "many", "more", "most",
        "much", "must", "only", "other", "over", "same", "should", "some", "such", "than",
        "that", "their", "them", "then", "there", "these", "they", "this", "those",
        "through", "under", "used", "using", "very", "were", "what", "when", "where",
        "which", "while", "will", "with", "would", "your",
    )
)  # fmt: skip
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")
_PLAIN = re.compile(r"[\w\s,.;:'\"()`*/=+<>\[\]-]+")
_WORD = re.compile(r"\b[a-z]{4,12}\b")
_SHORTEST, _LONGEST = 6, 30  # words of a sentence that makes an exercise


# --- rewriting prose -----------------------------------------------------------------------------


def rewrites(
    documents: Iterable[Document], stream: str, per_document: int = 4
) -> Iterator[Candidate]:
    """Exercises made from prose documents, at most `per_document` from each."""
    for document in documents:
        if document.source not in PROSE:
            continue
        rng = Random(f"{stream}/rewrites/{document.id}")
        sentences = _sentences(document.text)
        found = [c for s in sentences if (c := _cloze(document, sentences, s, rng))]
        rng.shuffle(found)
        definition = _definition(document)
        yield from ([definition] if definition else [])
        yield from found[: per_document - bool(definition)]


def _sentences(text: str) -> list[str]:
    """The whole plain sentences of a text: no examples, no tables, no markup."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph or "::" in paragraph:
            continue
        for sentence in _SENTENCE.split(" ".join(paragraph.split())):
            words = len(sentence.split())
            if (
                _SHORTEST <= words <= _LONGEST
                and sentence[0].isupper()
                and sentence.endswith(".")
                and _PLAIN.fullmatch(sentence)
            ):
                found.append(sentence)
    return found


def _cloze(
    document: Document, sentences: list[str], sentence: str, rng: Random
) -> Candidate | None:
    """The sentence with one content word left out; half of the time with the passage to look it
    up in. None where no word is fit: it must stand in the sentence once and be no stop word."""
    words = [
        w for w in _WORD.findall(sentence)
        if w not in _STOP_WORDS and len(re.findall(rf"\b{w}\b", sentence)) == 1
    ]  # fmt: skip
    if not words:
        return None
    word = rng.choice(words)
    gap = re.sub(rf"\b{word}\b", "____", sentence)
    question = f"Fill in the blank: {gap}"
    if rng.random() < 0.5:
        at = sentences.index(sentence)
        passage = " ".join(sentences[max(0, at - 1) : at + 2])
        question = f"{passage}\n{question}"
    return _from(document, "cloze", question, f"{sentence}\nAnswer: {word}", word)


def _definition(document: Document) -> Candidate | None:
    """ "What does `heapq.heappop` do?" from the first sentence of its documentation."""
    kind, _, rest = str(document.meta.get("kind", "")).partition(" ")
    _, _, body = document.text.partition("\n\n")
    sentences = _sentences(body.split("\n\n")[0])
    if rest != "documentation" or not sentences or not body.lstrip().startswith(sentences[0][:20]):
        return None
    name = document.meta["name"]
    ask = f"What does `{name}` do?" if kind == "function" else f"What is `{name}`?"
    return _from(document, "definition", ask, f"Answer: {sentences[0]}", sentences[0])


def _from(document: Document, kind: str, question: str, response: str, answer: str) -> Candidate:
    return Candidate(
        kind=kind,
        source="web_rewrites",
        question=question,
        response=response,
        answer=answer,
        verifier="exact",
        parents=(document.id,),
        meta={"teacher": "procedural", "name": document.meta.get("name", "")},
    )


# --- instruction reversal ------------------------------------------------------------------------


class _Function(NamedTuple):
    document: Document
    name: str
    signature: str
    doc: str
    code: str  # without the docstring
    calls: tuple[str, ...]


_ARGUMENTS: dict[int, tuple[str, ...]] = {
    1: ("0", "7", "-3", "'a b'", "'Word'", "[3, 1, 2]", "[]", "2.5", "b'ab'", "{'a': 1}"),
    2: ("3, 4", "10, 3", "'a-b', '-'", "[1, 2, 3], 2", "'abc', 2", "'abc', 'b'", "[2], [1]"),
    3: ("1, 2, 3", "'abc', 'b', 'x'", "[1, 2, 3], 0, 2", "'abc', 1, 2"),
}
_IMPURE = {"print", "open", "input", "exec", "eval", "__import__", "id", "hash", "set", "frozenset"}
_LONGEST_CODE = 900  # characters: what a small model can write
_FEWEST_TESTS = 2


def reversals(documents: Iterable[Document]) -> list[Candidate]:
    """Functions of the documents as instructions with their solutions.

    A function is kept if it is self-contained, has a docstring, and at least two calls (its
    doctest's, or generated ones) return plain values in the sandbox; those are the tests.
    """
    functions = [f for d in documents if d.source == "code" for f in _functions(d)]
    programs = [Program(f.code, tuple(Check("value", call) for call in f.calls)) for f in functions]
    outcomes = run_python(programs)
    candidates = (_reversal(f, o) for f, o in zip(functions, outcomes, strict=True))
    return [c for c in candidates if c]


def _reversal(function: _Function, outcome: Outcome) -> Candidate | None:
    tests, values = [], set()
    for call, result in zip(function.calls, outcome.checks, strict=False):
        if not result.error and _is_literal(result.shown) and result.shown != "None":
            tests.append(f"assert {call} == {result.shown}")
            values.add(result.shown)
    if len(values) < _FEWEST_TESTS:
        return None
    return Candidate(
        kind="reversal",
        source="code",
        question=f"Write this Python function. {function.doc}\n"
        f"```python\n{function.signature}\n```",
        response=f"```python\n{function.code}\n```",
        answer=json.dumps({"entry": function.name, "tests": tests[:6]}),
        verifier="code",
        parents=(function.document.id,),
        meta={"teacher": "procedural", "name": function.name},
    )


def _functions(document: Document) -> Iterator[_Function]:
    """The functions of a document that could stand alone."""
    try:
        tree = ast.parse(document.text)
    except (SyntaxError, ValueError):
        return  # an excerpt in another language or dialect: nothing to reverse
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.decorator_list and not _is_method(node):
            doc = ast.get_docstring(node)
            if doc and len(node.body) > 1 and _self_contained(node):
                yield from _function(document, node, doc)


def _is_method(node: ast.FunctionDef) -> bool:
    first = [*node.args.posonlyargs, *node.args.args][:1]
    return any(a.arg in ("self", "cls", "mcs") for a in first)


def _function(document: Document, node: ast.FunctionDef, doc: str) -> Iterator[_Function]:
    summary = " ".join(doc.split("\n\n")[0].split())
    calls = (*_doctest_calls(node.name, doc), *_generated_calls(node))
    bare = ast.FunctionDef(
        name=node.name, args=node.args, body=node.body[1:], decorator_list=[], returns=node.returns
    )
    code = ast.unparse(ast.fix_missing_locations(bare))
    if len(code) <= _LONGEST_CODE and len(summary.split()) <= 2 * _LONGEST and calls:
        yield _Function(document, node.name, code.split("\n")[0], summary, code, calls)


def _self_contained(node: ast.FunctionDef) -> bool:
    """Uses nothing but its own names and builtins, and of those none whose effect is outside or
    whose result differs from process to process (the order of a set of strings does)."""
    bound = {node.name}
    used = set()
    for part in ast.walk(node):
        match part:
            case (
                ast.Set()
                | ast.SetComp()
                | ast.Import()
                | ast.ImportFrom()
                | ast.Global()
                | ast.Yield()
                | ast.YieldFrom()
            ):
                return False
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name):
                bound.add(name)
            case ast.FunctionDef(name=name):
                bound.add(name)
            case ast.ExceptHandler(name=str() as name):
                bound.add(name)
    free = used - bound
    return free <= set(dir(builtins)) - _IMPURE


def _doctest_calls(name: str, doc: str) -> Iterator[str]:
    try:
        examples = doctest.DocTestParser().get_examples(doc)
    except ValueError:
        return  # prompts that are not laid out as doctests
    for example in examples:
        source = example.source.strip()
        if source.startswith(f"{name}(") and "\n" not in source and example.want:
            yield source


def _generated_calls(node: ast.FunctionDef) -> Sequence[str]:
    required = len(node.args.posonlyargs) + len(node.args.args) - len(node.args.defaults)
    if any(default is None for default in node.args.kw_defaults):
        return ()
    return [f"{node.name}({a})" for a in _ARGUMENTS.get(max(required, 1), ())]


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True
