"""WARC archives: pages, packed bodies, damaged records, and bounded memory."""

import gzip
import io
import lzma
import random
import shutil
import subprocess
import tempfile
import tracemalloc
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from reading_fixtures import PAGES, PROSE, documents

from phikit.data.readers import Broken, ReaderConfig, read
from phikit.records import Document


def response(
    address: str, body: bytes, kind: str = "text/html", status: str = "200 OK", encoding: str = ""
) -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
    http += f"{encoding}\r\n\r\n" if encoding else f"Content-Length: {len(body)}\r\n\r\n"
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
    assert not kept and set(broken) == {"crawl.warc.gz#byte-0"}


def packed_pages(count: int, packing: str = "gz") -> list[bytes]:
    """Members of an archive; what is in them does not pack well, so damage seldom goes unseen."""
    rng = random.Random(count)
    text = [" ".join(f"{rng.getrandbits(40):x}" for _ in range(80)) for _ in range(count)]
    packed = [
        response(f"https://a.example/{n}", t.encode(), "text/plain") for n, t in enumerate(text)
    ]
    pack = {"gz": gzip.compress, "zst": frame, "xz": lzma.compress}[packing]
    return [pack(gzip.decompress(page)) for page in packed]


def frame(data: bytes, **more) -> bytes:
    """A zstd frame with its checksum."""
    from fastwarc.stream_io import ZstdWriter

    made = io.BytesIO()
    writer = ZstdWriter(made, **more)
    writer.write(data)
    writer.close()
    return made.getvalue()


def numbers(kept: list[Document]) -> list[int]:
    return [int(d.meta["url"].rpartition("/")[2]) for d in kept]


@pytest.mark.parametrize("packing", ["gz", "zst", "xz"])
@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    at=st.integers(0, 19),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.booleans(),
)
def test_a_damaged_member_of_a_warc_costs_itself_alone(packing, at, places, cut) -> None:
    pytest.importorskip("fastwarc")
    members, plain = packed_pages(20, packing), packed_pages(20)
    whole = members[at]
    bad = bytearray(whole)
    if cut:
        del bad[int(places[0][0] * len(bad)) :]
    else:
        for place, flip in places:
            bad[int(place * len(bad))] ^= flip
    with tempfile.TemporaryDirectory() as name:
        archive = Path(name) / f"crawl.warc.{packing}"
        archive.write_bytes(b"".join([*members[:at], bytes(bad), *members[at + 1 :]]))
        found = list(read(ReaderConfig(root=name)))
    kept = {int(d.meta["url"].rpartition("/")[2]): d for d in found if isinstance(d, Document)}
    assert set(range(20)) - {at} <= set(kept)
    for number, document in kept.items():
        text = gzip.decompress(plain[number]).decode()
        assert document.text == text[-len(document.text) - 4 : -4]
    broken = [b for b in found if isinstance(b, Broken)]
    if at not in kept and bad:
        begin = sum(map(len, members[:at]))
        assert broken[0].name == f"crawl.warc.{packing}#byte-{begin}"
        kind = {"gz": "gzip member: ", "zst": "zstd frame: ", "xz": "xz stream: "}[packing]
        assert broken[0].reason == "damaged or cut off" and kind in broken[0].excerpt


def skipped(data: bytes, kind: int = 0x50) -> bytes:
    """A zstd frame that is to be skipped."""
    return bytes([kind]) + b"\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


@pytest.mark.parametrize("size", [700, 2900])
def test_zstd_frames_that_begin_anywhere_are_read_as_one(tmp_path, size) -> None:
    pytest.importorskip("fastwarc")
    plain = b"".join(map(gzip.decompress, packed_pages(20)))
    frames = [frame(plain[i : i + size]) for i in range(0, len(plain), size)]
    (tmp_path / "crawl.warc.zst").write_bytes(b"".join(map(skipped, frames)))
    kept, broken = documents(tmp_path)
    assert not kept and list(broken.values()) == ["no records"]
    each = b"".join(skipped(b"size") + f for f in frames)
    (tmp_path / "crawl.warc.zst").write_bytes(each)
    kept, broken = documents(tmp_path)
    assert numbers(kept) == list(range(20)) and not broken
    (tmp_path / "crawl.warc.zst").write_bytes(frame(plain))
    kept, broken = documents(tmp_path)
    assert numbers(kept) == list(range(20)) and not broken


def test_zstd_frames_between_others_are_skipped_and_zeros_at_the_end_are_nothing(tmp_path) -> None:
    pytest.importorskip("fastwarc")
    a, b, c, d = packed_pages(4, "zst")
    torn = b[:100] + bytes(100_000) + b[100:]
    data = b"".join([skipped(b"x" * 9), a, skipped(b""), torn, c, skipped(c), d])
    (tmp_path / "crawl.warc.zst").write_bytes(data + bytes(100_000))
    kept, broken = documents(tmp_path)
    assert numbers(kept) == [0, 2, 3]
    assert set(broken) == {f"crawl.warc.zst#byte-{data.index(torn)}"}


def test_zstd_frames_packed_by_a_dictionary_in_the_archive(tmp_path) -> None:
    fastwarc = pytest.importorskip("fastwarc.stream_io")
    if not shutil.which("zstd"):
        pytest.skip("the program zstd packs by a dictionary")
    pages = [gzip.decompress(page) for page in packed_pages(40)]
    words = fastwarc.zstd_train_dictionary_from_samples(pages * 20, 4000)
    (tmp_path / "words").write_bytes(words)
    command = ["zstd", "-qc", "-D", str(tmp_path / "words")]
    frames = [
        subprocess.run(command, input=page, stdout=subprocess.PIPE, check=True).stdout
        for page in pages
    ]
    frames[3] = frames[3][:-20]
    for holds in (words, frame(words)):
        (tmp_path / "crawl.warc.zst").write_bytes(skipped(holds, 0x5D) + b"".join(frames))
        kept, broken = documents(tmp_path)
        assert numbers(kept) == [n for n in range(40) if n != 3]
        assert list(broken.values()) == ["damaged or cut off"]


def test_a_warc_ends_in_zeros_or_in_something_else_and_both_are_told_apart(tmp_path) -> None:
    pytest.importorskip("fastwarc")
    data = b"".join(packed_pages(3))
    (tmp_path / "zeros.warc.gz").write_bytes(data + bytes(100_000))
    (tmp_path / "junk.warc.gz").write_bytes(data + b"\x1f\x8b\x08 and more" + data)
    plain = b"".join(map(gzip.decompress, packed_pages(3)))
    (tmp_path / "one-member.warc.gz").write_bytes(gzip.compress(plain))
    kept, broken = documents(tmp_path)
    paths = [d.meta["path"] for d in kept]
    assert {p: paths.count(p) for p in sorted(set(paths))} == {
        "junk.warc.gz": 6, "one-member.warc.gz": 3, "zeros.warc.gz": 3
    }  # fmt: skip
    assert set(broken) == {f"junk.warc.gz#byte-{len(data)}"}


def test_xz_streams_of_some_records_and_those_that_begin_anywhere(tmp_path) -> None:
    pytest.importorskip("fastwarc")
    pages = [gzip.decompress(page) for page in packed_pages(20)]
    packed = [lzma.compress(b"".join(pages[i : i + 4])) for i in range(0, 20, 4)]
    bad = bytearray(packed[2])
    bad[-len(bad) // 8] ^= 1  # in the fourth record
    archive = tmp_path / "crawl.warc.xz"
    archive.write_bytes(
        b"".join([packed[0], bytes(8), packed[1], bad, bytes(100_000), *packed[3:]])
    )
    kept, broken = documents(tmp_path)
    assert numbers(kept) == [n for n in range(20) if n != 11]
    begin = len(packed[0]) + 8 + len(packed[1])
    assert broken == {f"crawl.warc.xz#byte-{begin}": "damaged or cut off"}
    plain = b"".join(pages)
    archive.write_bytes(
        b"".join(lzma.compress(plain[i : i + 900]) for i in range(0, len(plain), 900))
    )
    kept, broken = documents(tmp_path)
    assert numbers(kept) == list(range(20)) and not broken


def test_one_xz_stream_is_read_up_to_its_damage(tmp_path) -> None:
    pytest.importorskip("fastwarc")
    pages = [gzip.decompress(page) for page in packed_pages(400)]
    inner = lzma.compress(b"WARC/1.0 is what another archive begins with")
    noise = random.Random(0).randbytes(200_000)
    kind = "application/octet-stream"
    pages[1] = gzip.decompress(response("https://a.example/xz", noise + inner + noise[::-1], kind))
    data = lzma.compress(b"".join(pages))
    assert inner in data  # as it was: a stream begins there that is none of the archive's
    (tmp_path / "crawl.warc.xz").write_bytes(data[: -len(data) // 4])
    (found,) = [b for b in read(ReaderConfig(root=str(tmp_path))) if isinstance(b, Broken)]
    kept, _ = documents(tmp_path)
    assert 20 < len(kept) < 399 and found.name == "crawl.warc.xz"
    assert found.excerpt.startswith("after ")


@pytest.mark.parametrize("packing", ["gz", "zst", "xz"])
def test_a_damaged_warc_is_read_in_bounded_memory(tmp_path, packing) -> None:
    pytest.importorskip("fastwarc")
    members = packed_pages(4, packing)
    noise = random.Random(0).randbytes(24_000_000)
    bomb = response("https://a.example/bomb", bytes(64_000_000), "text/plain")
    bomb = {"gz": gzip.compress, "zst": frame, "xz": lzma.compress}[packing](gzip.decompress(bomb))
    (tmp_path / f"crawl.warc.{packing}").write_bytes(
        b"".join([members[0], members[1][:-9], noise, members[2], bomb, members[3]])
    )
    list(read(ReaderConfig(root=str(PAGES))))  # what is loaded on first use
    tracemalloc.start()
    kept, broken = documents(tmp_path, max_file_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.meta["url"][-1] for d in kept] == ["0", "2", "3"]
    assert sorted(broken.values()) == ["damaged or cut off", "page too large"]
    # an xz stream may refer back to its last eight million bytes
    assert peak < 8_000_000 + (packing == "xz") * 9_000_000


def test_warc_records_are_unpacked_as_their_headers_say(tmp_path) -> None:
    pytest.importorskip("fastwarc")
    page = f"<html><body><p>{PROSE}</p></body></html>".encode()
    chunked = b"%x\r\n" % len(page) + page + b"\r\n0\r\n\r\n"
    bomb = gzip.compress(b"<html>" + b"x" * 3_000_000)
    records = [
        response("https://a.example/gzip", gzip.compress(page), encoding="Content-Encoding: gzip"),
        response("https://a.example/chunked", chunked, encoding="Transfer-Encoding: chunked"),
        response("https://a.example/liar", page, encoding="Content-Encoding: gzip"),
        response("https://a.example/bomb", bomb, encoding="Content-Encoding: gzip"),
        response("https://a.example/charset", page, "text/html; charset=nonsense"),
        response("https://a.example/last", page),
    ]
    plain = b"".join(map(gzip.decompress, records))
    (tmp_path / "crawl.warc.gz").write_bytes(b"".join(records))
    (tmp_path / "crawl.warc.xz").write_bytes(lzma.compress(plain))
    (tmp_path / "cut.warc").write_bytes(plain[:-100])
    found = list(read(ReaderConfig(root=str(tmp_path), max_file_bytes=1_000_000)))
    for name, last in (("crawl.warc.gz", True), ("crawl.warc.xz", True), ("cut.warc", False)):
        kept = [d for d in found if isinstance(d, Document) and d.meta["path"] == name]
        urls = [d.meta["url"].rpartition("/")[2] for d in kept]
        assert urls == ["gzip", "chunked", "charset", *["last"] * last]
        assert {d.text for d in kept} == {PROSE.strip()}
        reasons = [b.reason for b in found if isinstance(b, Broken) and b.name.startswith(name)]
        said = ["no HTTP, or not packed as its header says", "page too large"]
        assert reasons == said + ["damaged or cut off"] * (not last)


def test_a_page_nested_too_deeply_costs_itself_alone(tmp_path) -> None:
    pytest.importorskip("fastwarc")
    deep = b"<html><body><p>x<math>" + b"<mrow>" * 5000 + b"<mi>x</mi></body></html>"
    records = response("https://a.example/deep", deep) + packed_pages(1)[0]
    (tmp_path / "crawl.warc.gz").write_bytes(records)
    (tmp_path / "crawl.warc").write_bytes(gzip.decompress(records))
    kept, broken = documents(tmp_path)
    assert [d.meta["url"] for d in kept] == ["https://a.example/0"] * 2
    assert list(broken.values()) == ["too deeply nested"] * 2
