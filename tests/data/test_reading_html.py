"""The HTML reader on real pages (tests/data/pages), and on the ways that sites write equations."""

import json
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import lxml.html
import pytest

from phikit.data.reading.base import BrokenFile
from phikit.data.reading.html import page_text

PAGES = Path(__file__).parent / "pages"
NAMES = ["rust-book-data-types", "postgresql-functions-math", "python-bisect"]


def squeeze(text: str) -> str:
    return re.sub(r"[\W_]+", "", text)


def navigation(element) -> bool:
    if next(element.iterancestors("nav"), None) is not None:
        return True
    classes = " ".join(a.get("class") or "" for a in element.iterancestors())
    return any(word in classes for word in ("sphinxsidebar", "navheader", "navfooter", "nav-wr"))


@pytest.mark.parametrize("name", NAMES)
def test_paragraphs_code_and_tables_of_real_pages_are_kept_and_navigation_is_not(name) -> None:
    data = (PAGES / f"{name}.html").read_bytes()
    text, title = page_text(data)
    tree = lxml.html.fromstring(data)
    assert title == " ".join(tree.findtext(".//title").split())
    found = squeeze(text)
    for tag, least in (("p", 0.95), ("pre", 1.0), ("td", 1.0)):
        units = [squeeze(e.text_content()) for e in tree.iter(tag) if not navigation(e)]
        units = [u for u in units if len(u) > 3]
        if units:
            assert sum(u in found for u in units) / len(units) >= least, tag
    links = tree.xpath("//nav//a[@href] | //*[@class='sphinxsidebar']//li/a | "
                       "//*[@class='navheader']//td")  # fmt: skip
    in_navigation = [t for a in links if len(t := a.text_content().strip()) > 25]
    assert not [t for t in in_navigation if re.search(f"^{re.escape(t)}$", text, re.MULTILINE)]


def test_code_blocks_are_fenced_with_their_language_and_indentation() -> None:
    text, _ = page_text((PAGES / "python-bisect.html").read_bytes())
    assert "```python3\ndef index(a, x):" in text
    assert "    'Locate the leftmost value exactly equal to x'\n    i = bisect_left(a, x)" in text
    text, _ = page_text((PAGES / "rust-book-data-types.html").read_bytes())
    assert "```rust\n#![allow(unused)]\nfn main() {\nlet guess: u32" in text
    assert "### Scalar Types" in text


def test_tables_are_markdown_and_powers_are_kept() -> None:
    text, _ = page_text((PAGES / "rust-book-data-types.html").read_bytes())
    assert "| Length | Signed | Unsigned |\n|---|---|---|\n| 8-bit | i8 | u8 |" in text
    assert "-(2^{n - 1}) to 2^{n - 1} - 1 inclusive" in text


def page(body: str) -> str:
    # enough of an article around it for it to be the main content
    filler = "<p>" + "An ordinary sentence of this article, to be read at leisure. " * 5 + "</p>"
    return page_text(
        f"<html><body><article>{filler}{body}{filler}</article></body></html>".encode()
    )[0]


def test_equations_of_every_kind_of_page() -> None:
    wikipedia = (
        '<p>so <span class="mwe-math-element"><span class="mwe-math-mathml-inline" '
        'style="display:none"><math alttext="{\\displaystyle E=mc^{2}}"><semantics><mrow>'
        '<mi>E</mi></mrow><annotation encoding="application/x-tex">{\\displaystyle E=mc^{2}}'
        "</annotation></semantics></math></span></span> holds</p>"
    )
    assert "$E=mc^{2}$" in page(wikipedia.replace(' style="display:none"', ""))
    katex = (
        '<p>where <span class="katex"><span class="katex-mathml"><math><semantics><mi>x</mi>'
        '<annotation encoding="application/x-tex">\\frac{a}{b}</annotation></semantics></math>'
        '</span><span class="katex-html" aria-hidden="true">ab</span></span> is less</p>'
    )
    assert "where $\\frac{a}{b}$ is less" in page(katex)
    mathjax = '<p>thus <script type="math/tex; mode=display">\\int_0^1 x\\,dx</script> follows</p>'
    assert "$$\\int_0^1 x\\,dx$$" in page(mathjax)
    sphinx = (
        '<p>for <img class="math" src="a.png" alt="a \\equiv b\\ (\\textrm{mod}\\ 4)"/> only</p>'
    )
    assert "for $a \\equiv b\\ (\\textrm{mod}\\ 4)$ only" in page(sphinx)


def test_mathml_without_its_source_is_translated() -> None:
    pypandoc = pytest.importorskip("pypandoc")
    source = r"The roots are $x = \frac{-b \pm \sqrt{b^2 - 4 a c}}{2 a}$ and "
    source += r"$\sum_{i=1}^{n} x_i^2 \le \alpha$ too."
    made = subprocess.run(
        [pypandoc.get_pandoc_path(), "-f", "latex", "-t", "html", "--mathml"],
        input=source, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "<math" in made
    bare = re.sub(r"<annotation.*?</annotation>", "", made, flags=re.DOTALL)
    text = re.sub(r"\s", "", page(bare))
    assert r"$x=\frac{-b\pm\sqrt{b^{2}-4ac}}{2a}$" in text
    assert r"$\sum_{i=1}^{n}x_{i}^{2}\le\alpha$" in text


DRAWN = json.loads((PAGES / "drawn-equations.json").read_text())
PICTURES = json.loads((PAGES / "drawn-pictures.json").read_text())
#: how TeX is written in which what is drawn alike is written alike
ALIKE = {
    r"\\,|\s|\\left|\\right": "", r"\\begin{pmatrix}": r"(\\begin{matrix}",
    r"\\end{pmatrix}": r"\\end{matrix})", r"\\begin{cases}": r"\{\\begin{matrix}",
    r"\\end{cases}": r"\\end{matrix}", r"\\mathbb{R}": "ℝ", "f'": "f^'",
    r"\\binom{n}{k}": r"(\\begin{matrix}n\\\\k\\end{matrix})",
    r"(?<!\\)[{}]": "",
}  # fmt: skip


def alike(source: str) -> str:
    for pattern, way in ALIKE.items():
        source = re.sub(pattern, way, source)
    return source


def read_as(drawing: str) -> str:
    text = page(f"<p>so {drawing} is here</p>")
    found = re.search(r"^so (.+) is here$", text, re.MULTILINE)
    assert found, text
    return found[1]


@pytest.mark.parametrize("maker", ["katex", "chtml", "svg"])
def test_equations_of_which_only_the_drawing_is_there(maker) -> None:
    for drawn in DRAWN:
        found = read_as(drawn[maker])
        marks = "$$" if drawn["display"] else "$"
        assert found.startswith(marks) and found.endswith(marks)
        expected = alike(drawn["tex"])
        if maker == "katex":  # the brace is a picture, here without its outline
            expected = expected.replace(r"\overbrace", "")
        assert alike(found.strip("$")) == expected, (drawn["tex"], found)
    fraction = next(d for d in DRAWN if d["tex"] == r"\frac{a+b}{c^2}")
    assert read_as(fraction[maker]) == r"$\frac{a+b}{c^{2}}$"


@pytest.mark.parametrize("drawn", PICTURES, ids=[f"{d['by']} {d['tex']}" for d in PICTURES])
def test_signs_that_are_pictures_and_parts_within_parts(drawn) -> None:
    assert read_as(drawn["drawing"]) == drawn["read"]


def test_many_drawings_and_sidebars_leave_the_text_between_them() -> None:
    drawing = DRAWN[1]["katex"]
    inside = f"<span class='sidebar'>no {drawing}</span>"
    text = page("<p>" + "".join(f"{n} {inside}<i>is</i> {drawing}, " for n in range(300)) + "</p>")
    assert " ".join(f"{n} is $a_{{ij}}$," for n in range(300)) in " ".join(text.split())


def test_a_drawing_that_is_not_understood_keeps_its_letters() -> None:
    unknown = '<span class="katex"><span class="of-a-later-version">x+1</span></span>'
    assert read_as(unknown) == "x+1"
    old = '<span class="MathJax_CHTML"><span class="mjx-math"><span>y</span></span></span>'
    assert read_as(old) == "y"
    odd = DRAWN[0]["svg"].replace('"1D467"', '"1"').replace('"1D466"', '"D835"')
    assert read_as(odd) == "$x^{2}+^{2}=^{2}$"
    assert read_as(DRAWN[0]["katex"].replace("msupsub", "other")) == "$x2+y2=z2$"


def test_a_function_stands_apart_from_what_it_is_applied_to() -> None:
    assert read_as("<math><mi>sin</mi><mo>&#8289;</mo><mi>x</mi></math>") == r"$\sin x$"


def test_references_to_characters_that_no_page_may_hold_are_left_out() -> None:
    text = "a&#0;b&#x1f;c&#xD800;d&#55296e&#xFFFE;f&#x110000;g&#99999999999999999999;h&#228;&#x3b1;"
    assert read_as(f"<sup>{text}</sup>") == "^{abcdefghäα}"
    assert "| abcdefghäα | 2 |" in page(
        f"<table><tr><th>x<th>y</tr><tr><td>{text}<td>2</tr></table>"
    )


def test_a_thread_keeps_question_answers_and_comments_in_order() -> None:
    def post(kind: str, text: str) -> str:
        return f'<div class="{kind} post"><div class="post-body"><p>{text}</p></div></div>'

    parts = [
        ("question", "How do I find the first element that is not smaller in a sorted list? " * 2),
        ("answer", "Use bisect_left, which gives the place where it would have to be put. " * 2),
        ("comment", "Mind that the list must really be sorted, or the answer means nothing. " * 2),
        ("answer", "A plain loop does it as well, if the list has only a few elements in it. " * 2),
    ]
    body = "".join(post(kind, text) for kind, text in parts)
    text, _ = page_text(
        f'<html><body><nav><a href="/">Home</a></nav><main>{body}</main></body></html>'.encode()
    )
    places = [text.find(part.strip()) for _, part in parts]
    assert -1 not in places and places == sorted(places)
    assert "Home" not in text


def test_cells_that_span_stay_in_their_columns_and_lines_stay_lines() -> None:
    text = page(
        "<table><tr><th>City</th><th colspan=2>Of<br>note</th><th>Age</th></tr>"
        "<tr><td rowspan=2>Rome</td><td>1</td><td><p>2</p><p>3</p></td><td>30</td></tr>"
        "<tr><td>4</td><td>5</td><td>31</td></tr></table>"
    )
    assert (
        "| City | Of note |  | Age |\n|---|---|---|---|\n"
        "| Rome | 1 | 2 3 | 30 |\n| Rome | 4 | 5 | 31 |" in text
    )
    code = "```\na = 1\n  b\n```"
    assert code in page("<pre>a = 1<br>  b</pre>")
    assert code in page("<pre><code><div>a = 1</div><div>  b</div></code></pre>")
    numbered = (
        '<figure><table><tr><td class="gutter"><pre>1\n2</pre></td>'
        '<td class="code"><pre>a = 1\n  b</pre></td></tr></table></figure>'
    )
    assert page(numbered).count("```") == 2 and code in page(numbered)


def test_lists_and_figures_of_data_are_content_and_lists_of_links_are_not() -> None:
    prose = "<p>" + "An ordinary sentence of this page, to be read at leisure. " * 5 + "</p>"
    made = f"""<html><body>{prose}
        <ul><li>200 g of flour</li><li>two eggs<ul><li>fresh ones</li></ul></li></ul>{prose}
        <figure><table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
        <figcaption>What it says</figcaption></figure>
        <ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul>
        </body></html>"""
    text = page_text(made.encode())[0]
    assert "  • 200 g of flour\n  • two eggs\n    • fresh ones" in text
    assert "| a | b |\n|---|---|\n| 1 | 2 |" in text and "What it says" in text
    assert "Home" not in text and "About us" not in text


def test_what_scripts_have_drawn_is_not_said_twice() -> None:
    drawn = (
        'so <span class="MathJax_Preview">x2</span>'
        '<span class="MathJax_CHTML"><span>x2</span></span>'
        '<script type="math/tex">x^2</script> and <span class="MathJax_SVG"><svg></svg>'
        "<span><math><mi>z</mi></math></span></span>"
        '<script type="math/tex">z</script> in <m:math><m:mo>{</m:mo><m:mn>5</m:mn><m:mo>%</m:mo>'
        "<m:mo>}</m:mo></m:math> ends"
    )
    assert r"so $x^2$ and $z$ in $\{5\%\}$ ends" in page(f"<p>{drawn}</p>")


def test_encodings_are_taken_from_the_page() -> None:
    body = "<p>" + "Größe, Übermut und Maß. " * 20 + "</p>"
    declared = f'<html><head><meta charset="iso-8859-1"></head><body>{body}</body></html>'
    assert "Größe, Übermut" in page_text(declared.encode("latin-1"))[0]
    assert "Größe, Übermut" in page_text(f"<html><body>{body}</body></html>".encode())[0]
    assert "Größe, Übermut" in page_text(declared.encode())[0]  # it says Latin-1, and is not
    assert "Größe, Übermut" in page_text(declared.encode(), "no-such-encoding")[0]


def test_pages_without_text_and_absurd_ones_are_refused_or_read() -> None:
    for empty in (b"", b"<html></html>", b"<html><body><script>x()</script></body></html>"):
        with pytest.raises(BrokenFile):
            page_text(empty)
    deep = b"<html><body>" + b"<div>" * 20_000 + b"<p>deep down</p>"
    with suppress(BrokenFile):  # refusing is as good; what it must not do is crash
        assert "deep down" in page_text(deep, main=False)[0]
