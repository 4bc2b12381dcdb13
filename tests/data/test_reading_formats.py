"""Every kind of file, well formed and broken: what is broken is set aside and the rest is read."""

import bz2
import datetime
import gzip
import json
import lzma
import os
import subprocess
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading_fixtures import PAGES, PROSE, documents

from phikit.data.corpus.plan import read_shard, shards_of
from phikit.data.readers import Broken, ReaderConfig, files, read
from phikit.errors import PhikitError
from phikit.records import Document, write_records


def lines(count: int) -> bytes:
    return b"".join(json.dumps({"text": f"{i} {PROSE}"}).encode() + b"\n" for i in range(count))


def test_compressed_text_is_read_and_a_cut_one_gives_what_was_whole(tmp_path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(500)))
    (tmp_path / "b.jsonl.bz2").write_bytes(bz2.compress(lines(3)))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(PROSE.encode()))
    with pa.output_stream(str(tmp_path / "d.jsonl.zst"), compression="zstd") as out:
        out.write(lines(4))
    kept, broken = documents(tmp_path)
    assert not broken
    assert len(kept) == 500 + 3 + 1 + 4
    cut = gzip.compress(lines(500))
    (tmp_path / "a.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(PROSE.encode())[:-20])
    (tmp_path / "d.jsonl.zst").write_bytes(b"not zstd at all")
    kept, broken = documents(tmp_path)
    assert broken == {"a.jsonl.gz": "damaged or cut off", "c.txt.xz": "damaged or cut off",
                      "d.jsonl.zst": "damaged or cut off"}  # fmt: skip
    assert 3 + 100 < len(kept) < 503


def test_a_bomb_unpacks_no_further_than_the_limit(tmp_path) -> None:
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"0" * 5_000_000))
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b"0" * 5_000_000))
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"<w>" + b"0" * 5_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.epub", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", b"0" * 5_000_000)
    kept, broken = documents(tmp_path, max_file_bytes=100_000)
    assert not kept
    assert broken == {"bomb.txt.gz": "file too large", "bomb.jsonl.gz": "line too large",
                      "bomb.docx": "file too large", "bomb.epub": "file too large"}  # fmt: skip


def test_the_content_decides_where_the_name_is_wrong(tmp_path) -> None:
    page = (PAGES / "python-bisect.html").read_bytes()
    (tmp_path / "page.txt").write_bytes(page)
    (tmp_path / "page.pdf").write_bytes(page)
    (tmp_path / "text.pdf").write_text(PROSE)
    (tmp_path / "text.parquet").write_text(PROSE)
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0\0\1" + bytes(range(256)))
    (tmp_path / "utf16.txt").write_text(PROSE, encoding="utf-16")
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "empty.txt").write_bytes(b"")
    kept, broken = documents(tmp_path)
    by_path = {d.meta["path"]: d for d in kept}
    assert by_path["page.txt"].meta["kind"] == by_path["page.pdf"].meta["kind"] == "page"
    assert by_path["utf16.txt"].text == PROSE
    assert by_path["empty.txt"].text == ""  # for the filters to reject
    assert broken == dict.fromkeys(
        ("text.pdf", "text.parquet", "binary.txt", "empty.pdf"), "not what its name says"
    )


def test_parquet_rows_become_documents_and_ours_come_back_as_they_were(tmp_path) -> None:
    rows = {
        "content": [PROSE, None, "Short."],
        "license": ["CC0-1.0", "", ""],
        "url": ["https://a.example/1", "", "https://a.example/3"],
    }
    pq.write_table(pa.table(rows), tmp_path / "foreign.parquet")
    own = Document(text=PROSE, source="web", parents=("abc",), meta={"url": "u"})
    write_records(tmp_path / "own.parquet", [own], Document)
    whole = (tmp_path / "foreign.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-10])
    kept, broken = documents(tmp_path)
    assert own in kept
    foreign = [d for d in kept if d.meta.get("path") == "foreign.parquet"]
    assert [(d.text, d.licence, d.meta["url"]) for d in foreign] == [
        (PROSE, "CC0-1.0", "https://a.example/1"), ("Short.", "", "https://a.example/3"),
    ]  # fmt: skip
    assert broken == {"foreign.parquet:2": "bad row", "cut.parquet": "not a whole Parquet file"}


def test_a_hugging_face_data_set_is_streamed(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"text": ["one text", "another text"], "url": ["a", "b"]})
    saved.save_to_disk(str(tmp_path / "saved"))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines(3))
    kept = list(read(ReaderConfig(root=f"hf:{tmp_path / 'saved'}")))
    assert [d.text for d in kept] == ["one text", "another text"]
    assert [d.meta["url"] for d in kept] == ["a", "b"]
    kept = list(read(ReaderConfig(root=f"hf:{folder}")))
    assert len(kept) == 3 and kept[2].text == f"2 {PROSE}"
    with pytest.raises(PhikitError, match="no such data set"):
        list(read(ReaderConfig(root=f"hf:{tmp_path / 'absent'}")))


def test_a_saved_data_set_names_its_splits_and_damage_is_told(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": [PROSE]})
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "two"))
    rows.save_to_disk(str(tmp_path / "one"))

    def texts(name: str) -> list:
        return list(read(ReaderConfig(root=f"hf:{tmp_path}/{name}")))

    assert len(texts("two::test")) == len(texts("one")) == 1
    with pytest.raises(PhikitError, match=r"no split 'train'(.|\n)*it has test"):
        texts("two")
    with pytest.raises(PhikitError, match=r"no split 'test'(.|\n)*it has none"):
        texts("one::test")
    with pytest.raises(PhikitError, match="no such data set"):
        list(read(ReaderConfig(root="hf:")))


TEX = r"""\documentclass{article}
\begin{document}
\section{A bound}
For $x>0$ we have \emph{always}
\begin{equation} \log x \le x - 1. \end{equation}
\begin{tabular}{ll} a & b \\ 1 & 2 \\ \end{tabular}
\begin{verbatim}
def f(x):
    return x - 1
\end{verbatim}
\end{document}
"""


def test_tex_and_word_keep_equations_tables_and_code(tmp_path) -> None:
    pypandoc = pytest.importorskip("pypandoc")
    (tmp_path / "paper.tex").write_text(TEX)
    pypandoc.convert_text(TEX, "docx", "latex", outputfile=str(tmp_path / "paper.docx"))
    (tmp_path / "broken.tex").write_text(r"\begin{document} \begin{equation} x")
    (tmp_path / "empty.tex").write_text("")
    with zipfile.ZipFile(tmp_path / "hollow.docx", "w") as archive:
        archive.writestr("word/document.xml", "<not-word/>")
    kept, broken = documents(tmp_path)
    by_path = {d.meta["path"]: d.text for d in kept}
    assert set(by_path) == {"paper.tex", "paper.docx"}
    assert set(broken) == {"broken.tex", "empty.tex", "hollow.docx"}
    for text in by_path.values():
        assert "$x>0$" in text.replace(" ", "") and r"\log x \le" in text.replace("leq", "le")
        assert "def f(x):\n" in text
        assert "# A bound" in text
        assert all(cell in text for cell in ("a", "b", "1", "2"))


def test_a_book_is_read_chapter_by_chapter(tmp_path) -> None:
    epub = pytest.importorskip("ebooklib.epub")
    book = epub.EpubBook()
    book.set_identifier("a-book")
    book.set_title("A Book")
    book.set_language("en")
    chapters = []
    for number in (1, 2):
        chapter = epub.EpubHtml(title=f"Chapter {number}", file_name=f"c{number}.xhtml")
        chapter.content = f"<h1>Chapter {number}</h1><p>{PROSE}</p><pre>a = {number}\n  b</pre>"
        book.add_item(chapter)
        chapters.append(chapter)
    book.spine = ["nav", *chapters]
    book.add_item(epub.EpubNcx())
    book.add_item(epub.EpubNav())
    epub.write_epub(str(tmp_path / "book.epub"), book)
    with zipfile.ZipFile(tmp_path / "hollow.epub", "w") as archive:
        archive.writestr("META-INF/container.xml", "<nothing/>")
    whole = (tmp_path / "book.epub").read_bytes()
    (tmp_path / "cut.epub").write_bytes(whole[: len(whole) // 2])
    kept, broken = documents(tmp_path)
    assert [(d.meta["book"], d.meta["chapter"]) for d in kept] == [("A Book", 1), ("A Book", 2)]
    assert kept[0].text.startswith("# Chapter 1\n\nThe quick brown fox")
    assert "```\na = 1\n  b\n```" in kept[0].text
    assert set(broken) == {"hollow.epub", "cut.epub"}


def test_a_pdf_is_read_in_paragraphs_and_a_broken_one_costs_itself_alone(tmp_path) -> None:
    pytest.importorskip("pypdfium2")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure = pyplot.figure(figsize=(8, 3))
    figure.text(0.05, 0.8, "A heading")
    figure.text(
        0.05, 0.5, "The first line of a paragraph that goes on and\non in the next line and ends."
    )
    figure.savefig(tmp_path / "paper.pdf")
    pyplot.close(figure)
    whole = (tmp_path / "paper.pdf").read_bytes()
    (tmp_path / "cut.pdf").write_bytes(whole[:200])
    (tmp_path / "junk.pdf").write_bytes(b"%PDF-1.7\n" + bytes(range(256)) * 20)
    kept, broken = documents(tmp_path)
    assert [d.meta["path"] for d in kept] == ["paper.pdf"]
    assert kept[0].text.splitlines()[0] == "A heading"
    assert "goes on and on in the next line and ends." in kept[0].text
    assert set(broken) == {"cut.pdf", "junk.pdf"}
    _, broken = documents(tmp_path, seconds_per_file=0.001)
    assert broken["paper.pdf"] == "takes too long"


def test_links_to_nowhere_pipes_and_locked_files_cost_themselves_alone(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "good.txt").write_text(PROSE)
    (tmp_path / "gone.txt").symlink_to("nothing")
    (tmp_path / "circle.jsonl").symlink_to("circle.jsonl")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "locked.txt").write_text(PROSE)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda p, m: p.name != "locked.txt" and allowed(p, m))
    kept, broken = documents(tmp_path)
    assert [d.meta["path"] for d in kept] == ["good.txt"]
    assert broken == {
        "gone.txt": "a link that leads nowhere", "circle.jsonl": "a link that leads nowhere",
        "pipe.txt": "no regular file", "locked.txt": "not allowed to read",
    }  # fmt: skip
    shards = shards_of(files([tmp_path]), 1000)
    assert {entry["name"] for shard in shards for entry in shard} == {"good.txt", *broken}


def test_a_line_too_large_costs_itself_alone_in_whole_files_and_in_parts(tmp_path) -> None:
    rows = [{"text": PROSE}, {"text": "x" * 5000}, {"text": "after " + PROSE}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, broken = documents(tmp_path, max_file_bytes=2000)
    assert [d.meta["name"] for d in kept] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert broken == {"rows.jsonl:2": "line too large"}
    settings = ReaderConfig(max_file_bytes=2000)
    parts = [
        document
        for shard in shards_of(files([tmp_path]), 100)
        for document in read_shard(shard, settings)
    ]
    assert parts == list(read(ReaderConfig(root=str(tmp_path), max_file_bytes=2000)))


def test_rows_say_what_they_lack_and_odd_fields_cost_no_text(tmp_path) -> None:
    when = datetime.datetime(2020, 1, 2)
    rows = [{"text": PROSE, "meta": {"when": when}}, {"text": None, "meta": {"when": when}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "dates.parquet")
    pq.write_table(pa.table({"text": [PROSE.encode(), b"\xff"]}), tmp_path / "bytes.parquet")
    pq.write_table(pa.table({"body": [PROSE]}), tmp_path / "other.parquet")
    half = json.dumps({"text": PROSE, "title": "\ud800"})
    (tmp_path / "odd.jsonl").write_text(half + '\n[1]\n{"text": "whole", "meta": "word"}\n')
    found = list(read(ReaderConfig(root=str(tmp_path))))
    kept = {d.meta["name"]: d for d in found if isinstance(d, Document)}
    assert set(kept) == {"dates.parquet:1", "bytes.parquet:1", "odd.jsonl:3"}
    assert kept["dates.parquet:1"].meta["when"] == str(when)
    assert kept["odd.jsonl:3"].meta["meta"] == "word"
    said = {b.name: b.excerpt for b in found if isinstance(b, Broken)}
    assert "no field 'text' (text_field) among ['body']" in said["other.parquet:1"]
    assert "holds no text but None" in said["dates.parquet:2"]
    assert set(said) == {
        "dates.parquet:2", "bytes.parquet:2", "other.parquet:1", "odd.jsonl:1", "odd.jsonl:2"
    }  # fmt: skip


def test_tables_that_only_look_like_ours_are_set_aside(tmp_path) -> None:
    columns = ("id", "parents", "text", "source", "licence", "language", "meta")
    pq.write_table(pa.table({c: ["no JSON"] for c in columns}), tmp_path / "text.parquet")
    rows: dict[str, list] = {c: ["a"] for c in columns} | {"meta": [{"a": 1}]}
    pq.write_table(pa.table(rows), tmp_path / "struct.parquet")
    write_records(tmp_path / "ours.parquet", [Document(text=PROSE, source="web")], Document)
    data = bytearray((tmp_path / "ours.parquet").read_bytes())
    data[4:40] = bytes(36)
    (tmp_path / "ours.parquet").write_bytes(data)
    kept, broken = documents(tmp_path)
    assert not kept
    assert broken == {
        "text.parquet": "not the documents its columns name",
        "struct.parquet": "not the documents its columns name",
        "ours.parquet": "not a whole Parquet file",
    }


def test_a_method_of_compression_that_is_unknown_costs_the_file_alone(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "odd.docx", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    data = bytearray((tmp_path / "odd.docx").read_bytes())
    data[8] = data[data.find(b"PK\x01\x02") + 10] = 99
    (tmp_path / "odd.docx").write_bytes(data)
    assert documents(tmp_path)[1] == {"odd.docx": "compressed in an unknown way"}


def test_a_damaged_chapter_costs_itself_alone(tmp_path) -> None:
    pytest.importorskip("lxml")
    pages = {f"b/{n}.xhtml": f"<html><body><p>{n} {PROSE}</p></body></html>" for n in "abc"}
    book(tmp_path / "book.epub", "abc", "abc", {name: p.encode() for name, p in pages.items()})
    whole = (tmp_path / "book.epub").read_bytes()
    (tmp_path / "book.epub").write_bytes(whole.replace(b"<p>b The", b"<p>b thE"))
    kept, broken = documents(tmp_path)
    assert [(d.text[0], d.meta["chapter"]) for d in kept] == [("a", 1), ("c", 2)]
    assert broken == {"book.epub#b/b.xhtml": "damaged or cut off"}


def test_lines_with_a_mark_windows_ends_blanks_and_zeros(tmp_path) -> None:
    row = json.dumps({"text": PROSE}).encode()
    data = b"\xef\xbb\xbf" + row + b"\r\n\r\n \n" + row + b"\n\0\0\0\n" + row + b"\n\n"
    (tmp_path / "rows.jsonl").write_bytes(data + '{"text": "Größe"}'.encode("latin-1"))
    kept, broken = documents(tmp_path)
    assert [d.meta["name"] for d in kept] == ["rows.jsonl:1", "rows.jsonl:4", "rows.jsonl:6"]
    assert broken == {"rows.jsonl:5": "bad line", "rows.jsonl:8": "bad line"}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_lines_in_utf16_with_its_mark(tmp_path, encoding) -> None:
    # characters that hold the byte of a line's end, and two halves of one
    texts = [f"{n} Ċ\u0a0a 😀 {PROSE * (n % 50)}" for n in range(400)]
    rows = [json.dumps({"text": t}, ensure_ascii=False).encode(encoding) for t in texts]
    end = "\r\n".encode(encoding)
    rows[7] = rows[7].replace("Ċ".encode(encoding), "\ud800".encode(encoding, "surrogatepass"))
    data = "\ufeff".encode(encoding) + b"".join(row + end for row in rows)
    whole = data + '{"text": "cut"}'.encode(encoding)[:-1]
    (tmp_path / "rows.jsonl").write_bytes(whole)
    (tmp_path / "rows.ndjson.gz").write_bytes(gzip.compress(whole))
    kept, broken = documents(tmp_path)
    for name in ("rows.jsonl", "rows.ndjson.gz"):
        there = {d.meta["name"]: d.text for d in kept if d.meta["path"] == name}
        assert there == {f"{name}:{n}": t for n, t in enumerate(texts, 1) if n != 8}
        assert broken[f"{name}:8"] == broken[f"{name}:401"] == "bad line"
    assert len(broken) == 4
    # it is never cut between the bytes of a character
    (shard,) = shards_of(files([tmp_path / "rows.jsonl"]), 10_000)
    assert sum(isinstance(d, Document) for d in read_shard(shard, ReaderConfig())) == 399


def test_an_archive_that_names_places_outside_itself_costs_the_file_alone(tmp_path) -> None:
    pytest.importorskip("lxml")
    data = {"b/a.xhtml": f"<html><body><p>{PROSE}</p></body></html>".encode()}
    book(tmp_path / "book.epub", "a", "a", data)
    whole = (tmp_path / "book.epub").read_bytes()
    at = whole.rindex(b"PK\x05\x06") + 16
    begin = int.from_bytes(whole[at : at + 4], "little")
    odd = whole[:at] + (begin + 500).to_bytes(4, "little") + whole[at + 4 :]
    (tmp_path / "book.epub").write_bytes(odd)
    (tmp_path / "good.txt").write_text(PROSE)
    kept, broken = documents(tmp_path)
    assert [d.meta["path"] for d in kept] == ["good.txt"]
    assert broken == {"book.epub": "damaged or cut off"}


def book(path: Path, manifest: str, spine: str, files: dict[str, bytes]) -> None:
    items = "".join(
        f'<item id="{name}" href="{name}.xhtml" media-type="application/xhtml+xml"/>'
        for name in manifest
    )
    order = "".join(f'<itemref idref="{name}"/>' for name in spine)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "META-INF/container.xml",
            '<container><rootfiles><rootfile full-path="b/c.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "b/c.opf",
            '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
            f"{items}</manifest>{f'<spine>{order}</spine>' if spine else ''}</package>",
        )
        for name, data in files.items():
            archive.writestr(name, data)


def test_books_without_order_with_holes_and_with_locks(tmp_path) -> None:
    pytest.importorskip("lxml")
    pages = {f"b/{n}.xhtml": f"<html><body><p>{n} {PROSE}</p></body></html>" for n in "ab"}
    latin = '<?xml version="1.0" encoding="iso-8859-1"?><html><body><p>Größe</p></body></html>'
    data = {name: page.encode() for name, page in pages.items()}
    book(tmp_path / "1-order.epub", "ab", "ba", data)
    book(tmp_path / "2-none.epub", "ab", "", data)
    book(tmp_path / "3-hole.epub", "axb", "axb", data)
    book(tmp_path / "4-latin.epub", "a", "a", {"b/a.xhtml": latin.encode("latin-1")})
    lock = b'<e><CipherReference URI="b/a.xhtml"/></e>'
    book(tmp_path / "5-lock.epub", "a", "a", {**data, "META-INF/encryption.xml": lock})
    kept, broken = documents(tmp_path)
    read_of = {(d.meta["path"][0], d.meta["chapter"]): d.text.split()[0] for d in kept}
    assert read_of == {
        ("1", 1): "b", ("1", 2): "a", ("2", 1): "a", ("2", 2): "b", ("3", 1): "a", ("3", 2): "b",
        ("4", 1): "Größe",
    }  # fmt: skip
    assert broken == {
        "3-hole.epub#b/x.xhtml": "chapter is missing", "5-lock.epub": "encrypted"
    }  # fmt: skip


def test_tex_and_word_keep_title_and_abstract_and_tex_its_declared_encoding(tmp_path) -> None:
    pypandoc = pytest.importorskip("pypandoc")
    source = (
        r"\documentclass{article}\usepackage[latin1]{inputenc}\title{Über Maße}\begin{document}"
        r"\maketitle\begin{abstract}In short.\end{abstract}At length.\end{document}"
    )
    (tmp_path / "paper.tex").write_bytes(source.encode("latin-1"))
    subprocess.run(
        [pypandoc.get_pandoc_path(), "-s", "-f", "latex", "-o", str(tmp_path / "paper.docx")],
        input=source.encode(), check=True,
    )  # fmt: skip
    kept, broken = documents(tmp_path)
    assert not broken
    texts = {d.meta["kind"]: d.text for d in kept}
    assert texts["tex"] == "# Über Maße\n\nIn short.\n\nAt length.\n"
    assert texts["docx"].startswith("# Über Maße\n\n") and "In short." in texts["docx"]
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\begin{document}text \begin{align} a { b \end{document}"
    )
    broken_now = [b for b in read(ReaderConfig(root=str(tmp_path))) if isinstance(b, Broken)]
    assert "Error at" in broken_now[0].excerpt and "expecting" in broken_now[0].excerpt


def test_of_tex_that_pandoc_refuses_all_but_the_part_it_names_is_kept(tmp_path) -> None:
    pytest.importorskip("pypandoc")
    bad = {
        "environment": "\\begin{align} a { b \\end{align}",
        "never closed": "Then \\begin{itemize}\n\\item one\n\n\\item two",
        "brace": "A brace } too many.",
        "dollar": "Costs \\emph{$5 and more.",
        "definition": "\\newcommand{\\half",
    }
    for name, part in bad.items():
        sections = [f"\\section{{S{n}}}\n\nText {n} stands here, $x_{n}$.\n\n" for n in range(9)]
        sections[4] += f"Before it.\n\n{part}\n\nAfter it.\n\n"
        source = "\\documentclass{article}\n\\newcommand{\\R}{\\mathbb{R}}\n\\title{Kept}\n"
        source += "\\begin{document}\n\\maketitle\nOn $\\R$.\n\n" + "".join(sections)
        (tmp_path / "paper.tex").write_text(source + "\\end{document}\n")
        found = list(read(ReaderConfig(root=str(tmp_path))))
        kept = [d for d in found if isinstance(d, Document)]
        broken = [b for b in found if isinstance(b, Broken)]
        assert len(kept) == 1, (name, found)
        assert kept[0].text.startswith("# Kept\n\nOn $\\mathbb{R}$."), name
        for n in range(9):
            assert f"Text {n} stands here, $x_{n}$." in kept[0].text, (name, n)
        assert "Before it." in kept[0].text and "After it." in kept[0].text, name
        if not broken:  # pandoc reads it all the same
            assert name == "environment"
            continue
        assert kept[0].meta["parts_left_out"] == len(broken) == 1, (name, broken)
        line = source[: source.index(part)].count("\n") + 1
        assert broken[0].name == f"paper.tex:{line}", name
        assert broken[0].reason == "a part that pandoc cannot read"
        said, _, source = broken[0].excerpt.rpartition(" ^: ")
        assert said.startswith("Error at (line ") and source in part
