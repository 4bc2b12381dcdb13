"""Fetching from a hub: a server that speaks its API, with cut connections, and one that dies."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from phikit.chat.format import chat_format
from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.models.checkpoint import save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig

pytest.importorskip("huggingface_hub")

REPOSITORY = "microsoft/Phi-4-mini-instruct"
COMMIT = "1" * 40


@dataclass
class Hub:
    """A hub with one repository.

    Attributes:
        cuts: after how many bytes the next answers with weights end, one for each.
        dead: weights are answered with an error.
        ranges: what was asked of the weights, in order.
        requests: all that was asked.
    """

    folder: Path
    cuts: list[int] = field(default_factory=list)
    dead: bool = False
    spoiled: bool = False
    ranges: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def files(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(self.folder.iterdir())}


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(path)
        files = self.hub.files()
        if re.fullmatch(rf"/api/models/{REPOSITORY}(/revision/[^/]+)?", path):
            names = [{"rfilename": name} for name in files]
            self.json({"id": REPOSITORY, "sha": COMMIT, "siblings": names})
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            self.json([self.entry(name, content) for name, content in files.items()])
        elif path.startswith(f"/{REPOSITORY}/resolve/") and path.rpartition("/")[2] in files:
            name = path.rpartition("/")[2]
            self.file(name, files[name])
        else:
            self.send_error(404)

    @staticmethod
    def entry(name: str, content: bytes) -> dict[str, object]:
        found = {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
        if name.endswith(".safetensors"):
            found["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 135}
        return found

    def json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def file(self, name: str, content: bytes) -> None:
        weights = name.endswith(".safetensors")
        body, start = content, 0
        asked = self.headers.get("Range")
        if weights and self.command == "GET":
            self.hub.ranges.append(asked or "")
            if self.hub.dead:
                self.send_error(503)
                return
            if self.hub.spoiled:
                body = content[:-1] + b"!"
        if asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", f'"{sha256(content) if weights else oid(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(body)
        if weights and self.hub.cuts:
            end = min(end, start + self.hub.cuts.pop(0))
        self.wfile.write(body[start:end])
        if end < len(body):
            self.close_connection = True


def oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path):
    folder = tmp_path / "published"
    shape = DecoderConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=1,
        head_dim=32, max_positions=64,
    )  # fmt: skip
    model = Decoder(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, folder)
    tokenizer = train_bpe(["words and words"] * 4, 300, NANO_SPECIAL)
    Tokenizer(tokenizer._fast, chat_format(tokenizer).tokenizer_config()).save(folder)
    (folder / "modeling_phi.py").write_text("raise SystemExit('code of the repository was run')")
    served = Hub(folder)
    handler = type("OwnHandler", (Handler,), {"hub": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(hub: Hub, home: Path, name: str = "phi-4-mini") -> tuple[int, str, str]:
    """The command in a process of its own: the hub's client reads its settings when imported."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "phikit", "fetch", name],
        env={**os.environ, **settings}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.strip(), done.stderr


def parts(home: Path) -> list[Path]:
    return list(home.glob("hub/models--*/blobs/*.phikit-part"))


def test_a_cut_connection_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [100_000, 50_000]
    status, out, said = fetch(hub, tmp_path / "home")
    assert status == 0, said
    assert hub.ranges == ["bytes=0-", "bytes=100000-", "bytes=150000-"]
    assert f"fetching {REPOSITORY} into" in said and "file 1 of 1" in said
    there = {p.name: p.read_bytes() for p in Path(out).iterdir()}
    published = hub.files()
    del published["modeling_phi.py"]
    assert there == published
    assert not parts(tmp_path / "home")
    hub.requests.clear()
    status, again, said = fetch(hub, tmp_path / "home")
    assert (status, again) == (0, out) and "fetching" not in said
    assert hub.requests == []


def test_what_a_dead_process_left_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    hub.cuts, hub.dead = [], True
    status, _, said = fetch(hub, home)
    assert status == 2
    assert f"{REPOSITORY} could not be fetched: " in said and "503" in said
    assert "lacks config.json, tokenizer.json, model.safetensors" in said
    assert "what is here is kept" in said
    weights = hub.files()["model.safetensors"]
    [part] = parts(home)
    part.write_bytes(weights[:123_456])  # as a killed process leaves it
    hub.dead = False
    hub.ranges.clear()
    status, out, said = fetch(hub, home)
    assert status == 0, said
    assert hub.ranges == ["bytes=123456-"]
    assert (Path(out) / "model.safetensors").read_bytes() == weights


def test_a_file_that_is_not_the_announced_one_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.spoiled = True
    status, _, said = fetch(hub, tmp_path / "home")
    assert status == 2 and "is not what the hub announced" in said
    assert [p.stat().st_size for p in parts(tmp_path / "home")] == [0]
    hub.spoiled = False
    assert fetch(hub, tmp_path / "home")[0] == 0


def test_no_hub_and_no_such_repository_are_said(hub: Hub, tmp_path: Path) -> None:
    status, _, said = fetch(hub, tmp_path / "home", "nobody/nothing")
    assert status == 2 and "nobody/nothing could not be fetched" in said and "404" in said
    hub.url = "http://127.0.0.1:9"  # nobody listens there
    status, _, said = fetch(hub, tmp_path / "home")
    assert status == 2 and "go online and run this again" in said
