from __future__ import annotations

from phikit.records import Document
from phikit.synth.workflows import reversals, rewrites


def prose(text: str, kind: str = "topic") -> Document:
    return Document(text=text, source="web", meta={"name": "m.thing", "kind": kind})


def code(text: str) -> Document:
    return Document(text=text, source="code", meta={"name": "f"})


def test_a_blank_is_a_content_word_of_the_sentence() -> None:
    document = prose("The parser reads one token after the other and builds a tree of nodes.")
    (cloze,) = rewrites([document], "0/t")
    assert cloze.answer in document.text
    assert "____" in cloze.question
    assert cloze.response == f"{document.text}\nAnswer: {cloze.answer}"
    assert cloze.parents == (document.id,)


def test_examples_markup_fragments_and_code_make_no_exercise() -> None:
    texts = [
        ">>> f(1) gives a result that is not a sentence at all.",
        "Too short.",
        "this begins in lower case and so it is perhaps a fragment.",
        "This has no end because the paragraph was cut off somewhere",
        "This is a table | with columns | and more columns | than one would like.",
    ]
    assert list(rewrites([prose(t) for t in texts], "0/t")) == []
    assert list(rewrites([code("The code looks like a sentence with many words.")], "0/t")) == []


def test_a_definition_becomes_a_question() -> None:
    text = "m.thing\n\nReturn the smallest item of a list of numbers.\n"
    found = list(rewrites([prose(text, "function documentation")], "0/t"))
    assert found[0].question == "What does `m.thing` do?"
    assert found[0].answer == "Return the smallest item of a list of numbers."


def test_only_functions_that_stand_alone_and_return_values_are_reversed() -> None:
    documents = [
        code('def add(a, b):\n    """Return the sum."""\n    return a + b\n'),
        code('def uses(a):\n    """Use a global name."""\n    return helper(a)\n'),
        code('def nothing(a):\n    """Do nothing."""\n    a = 1\n'),
        code('def shout(a):\n    """Print a thing."""\n    print(a)\n    return a\n'),
        code("def undocumented(a):\n    return a + 1\n"),
        code("class Broken:\n  def"),
    ]
    (kept,) = reversals(documents)
    assert kept.meta["name"] == "add"
    assert kept.parents == (documents[0].id,)
    assert "assert add(3, 4) == 7" in kept.answer
    assert '"""' not in kept.response


def test_doctests_are_among_the_tests() -> None:
    text = 'def triple(n):\n    """Return n three times.\n\n    >>> triple(21)\n    63\n    """\n'
    (kept,) = reversals([code(text + "    return 3 * n\n")])
    assert "assert triple(21) == 63" in kept.answer
