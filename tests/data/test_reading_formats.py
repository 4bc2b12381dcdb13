"""Every kind of file, well formed and broken: what is broken is set aside and the rest is read."""

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phikit.data.readers import Broken, ReaderConfig, read
from phikit.errors import PhikitError
from phikit.records import Document, write_records

PAGES = Path(__file__).parent / "pages"
PROSE = "The quick brown fox jumps over the lazy dog, and then it rests. " * 5


def documents(folder: Path, **settings) -> tuple[list[Document], dict[str, str]]:
    found = list(read(ReaderConfig(root=str(folder), **settings)))
    kept = [d for d in found if isinstance(d, Document)]
    return kept, {b.name: b.reason for b in found if isinstance(b, Broken)}


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


def response(address: str, body: bytes, kind: str = "text/html", status: str = "200 OK") -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    content = http.encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {address}\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{address}>\r\n"
        f"Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + content + b"\r\n\r\n")


def test_warc_pages_are_read_one_by_one(tmp_path) -> None:
    pytest.importorskip("fastwarc")
    page = (PAGES / "rust-book-data-types.html").read_bytes()
    latin = "<html><body><p>" + "Größe und Maß. " * 30 + "</p></body></html>"
    records = [
        response("https://a.example/book", page),
        response("https://a.example/latin", latin.encode("latin-1"), "text/html; charset=latin-1"),
        response("https://a.example/gone", page, status="404 Not Found"),
        response("https://a.example/picture", b"\x89PNG", "image/png"),
        response("https://a.example/empty", b"<html><body></body></html>"),
        response("https://a.example/plain", PROSE.encode(), "text/plain"),
    ]
    (tmp_path / "crawl.warc.gz").write_bytes(b"".join(records))
    kept, broken = documents(tmp_path)
    assert [d.meta["url"].rpartition("/")[2] for d in kept] == ["book", "latin", "plain"]
    assert "Größe und Maß" in kept[1].text and "| 8-bit | i8 | u8 |" in kept[0].text
    assert list(broken.values()) == ["no text"]
    (tmp_path / "crawl.warc.gz").write_bytes(b"".join(records)[:-50])
    kept, broken = documents(tmp_path)
    assert [d.meta["url"].rpartition("/")[2] for d in kept][:2] == ["book", "latin"]
    (tmp_path / "crawl.warc.gz").write_bytes(b"nothing of the kind")
    kept, broken = documents(tmp_path)
    assert not kept and set(broken) == {"crawl.warc.gz"}


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
