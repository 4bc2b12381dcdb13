"""Published checkpoints from the Hugging Face hub, in the layout of the hub's own cache.

The hub's client does the small files and the cache's links. Weights are fetched here, because the
client throws a half-fetched file away when its process ends, and a shard has gigabytes: what is
there of a shard is kept beside its final place and gone on with, by whatever process comes next.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from phikit.errors import PhikitError, how_to_install
from phikit.files import read_json, sha256_file
from phikit.progress import for_terminal

Say = Callable[[str], None]

_WANTED = ["*.json", "*.safetensors", "*.jinja"]  # and nothing that could be executed
_UNWANTED = ["*/*"]  # phi-4-multimodal repeats its adapters in folders, 1.7 GB
_TRIES = 4  # in a row without a byte
_SHA256 = re.compile("[0-9a-f]{64}")


def from_hub(repository: str, say: Say = print) -> Path:
    """The folder of a published checkpoint in the hub's cache, fetched when it is not whole.

    An interrupted download goes on where it stopped, also in another process.

    Raises:
        PhikitError: huggingface_hub is not installed, or the download failed; says which files
            are missing from which folder.
    """
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as e:
        raise PhikitError(
            f"fetching {repository} needs huggingface_hub", how_to_install("hub")
        ) from e
    place = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                allow_patterns=_WANTED,
                ignore_patterns=_UNWANTED,
                local_files_only=local,
            )
        )

    try:
        folder = snapshot(local=True)
        if not missing_files(folder):
            return folder
    except LocalEntryNotFoundError:
        folder = place
    except HFValidationError as e:
        raise PhikitError(f"{repository!r} is no repository's name: {e}") from e
    say(f"fetching {repository} into {place}")
    reason = ""
    try:
        if not constants.HF_HUB_OFFLINE:
            fetch_weights(repository, place)
        folder = snapshot(local=False)  # offline, this too may give what there is
    except _failures() as e:
        reason = f": {_first_line(e)}"
    if missing := missing_files(folder):
        raise PhikitError(
            f"{repository} could not be fetched{reason}\n  {folder} lacks {', '.join(missing)}",
            "go online and run this again, what is here is kept; or give a model directory",
        )
    return folder


def missing_files(folder: Path) -> list[str]:
    """What a model directory lacks to be loaded and talked with."""
    missing = [f for f in ("config.json", "tokenizer.json") if not (folder / f).exists()]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        missing += [shard for shard in shards if not (folder / shard).exists()]
    elif not (folder / "model.safetensors").exists():
        missing.append("model.safetensors (or its index and shards)")
    return missing


def fetch_weights(repository: str, place: Path) -> None:
    """Fetches the weight files of a repository into the cache's `blobs`, showing how far it is.

    Raises:
        PhikitError: a file is not the one that the hub announced, or another process fetches it.
        Exception: what `_failures` names: the network, the hub, the disk.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    info = HfApi().model_info(repository)
    names = [file.rfilename for file in info.siblings or ()]
    shards = sorted(n for n in names if n.endswith(".safetensors") and "/" not in n)
    display = for_terminal(sys.stderr)
    for number, name in enumerate(shards, 1):
        meta = get_hf_file_metadata(hf_hub_url(repository, name, revision=info.sha))
        if meta.etag is None or meta.size is None:
            return  # a hub that says too little: its client may do
        target = place / "blobs" / meta.etag
        if target.exists():
            continue
        own = meta.location == hf_hub_url(repository, name, revision=info.sha)
        headers = build_hf_headers() if own else {}  # tokens are the hub's alone
        label = f"file {number} of {len(shards)}"
        with display.stage(label) as progress:
            _fetch(meta.location, headers, target, meta.size, progress)


def _fetch(url: str, headers: dict[str, str], target: Path, size: int, progress: Any) -> None:
    """Downloads a file of that size, going on with what is there of it, and checks it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.phikit-part")
    with _alone(part) as file:
        tries = 0
        while (have := file.seek(0, 2)) < size:
            try:
                _go_on(url, headers, file, have, size, progress)
                tries = 0
            except _dropped() as e:
                tries = tries + 1 if file.seek(0, 2) == have else 0
                if tries >= _TRIES:
                    raise ConnectionError(f"the download stopped: {_first_line(e)}") from e
                time.sleep(tries)
        # the hub names large files by their SHA-256
        if file.tell() != size or (
            _SHA256.fullmatch(target.name) and sha256_file(part) != target.name
        ):
            file.truncate(0)
            raise PhikitError(
                f"what was downloaded from {url.partition('?')[0]} is not what the hub announced",
                "run this again: it begins anew",
            )
        part.replace(target)


def _go_on(
    url: str, headers: dict[str, str], file: BinaryIO, have: int, size: int, progress: Any
) -> None:
    """Appends the rest of a file; the first `have` bytes are there."""
    import httpx

    asked = {**headers, "Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with httpx.stream("GET", url, headers=asked, follow_redirects=True, timeout=30) as response:
        response.raise_for_status()
        if response.status_code != 206:  # the server sends it whole
            have = 0
            file.truncate(0)
        progress.update(have, size)
        for piece in response.iter_raw():  # as they come: what came before a cut counts
            file.write(piece)
            have += len(piece)
            progress.update(have, size)
        file.flush()


@contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """The file to append to, held by this process alone."""
    with part.open("a+b") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                raise PhikitError(
                    f"{part} is being written by another process", "wait until it is done"
                ) from e
        yield file


def _dropped() -> tuple[type[Exception], ...]:
    """Errors of a connection, after which it is worth asking again."""
    import httpx

    return (httpx.TransportError,)


def _failures() -> tuple[type[Exception], ...]:
    """What can go wrong while fetching. The hub's client has changed its HTTP library before."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found: list[type[Exception]] = [
        HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx.HTTPError,
    ]  # fmt: skip
    try:
        import httpx2
    except ImportError:
        return tuple(found)
    return (*found, httpx2.HTTPError)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
