"""The export stage: what it writes, and that its gate closes."""

import json

import pytest
import torch

import phikit.export.hf as hf
from phikit.chat.format import ChatFormat
from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.errors import PhikitError
from phikit.export.stages import STAGES, HfConfig, run_hf
from phikit.files import read_json
from phikit.models.checkpoint import load, save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.stage import Context

CONFIG = HfConfig(max_tokens=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training stage's folder."""
    folder = tmp_path_factory.mktemp("train")
    tokenizer = train_bpe(["Anna has three apples, Tom has 45."] * 3, 300, NANO_SPECIAL)
    tokenizer.config.update(ChatFormat.phi4(tokenizer).tokenizer_config())
    model = Decoder(
        DecoderConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=8,
            max_positions=256,
            tied=True,
        )
    )
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.model.norm.weight.mul_(20)
    save(model, folder / "model")
    tokenizer.save(folder / "model")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gate_opens(tmp_path, trained, dtype):
    transformers = pytest.importorskip("transformers")
    ctx = Context(tmp_path)
    summary = run_hf(ctx, HfConfig(dtype=dtype, max_tokens=8), {"model": trained})
    parity = read_json(tmp_path / "parity.json")
    assert parity["checked"] and parity["greedy_equal"] == parity["prompts"] == 8
    assert parity["logit_difference"] < 1e-3 and summary["dtype"] == dtype
    assert load(tmp_path / "model").lm_head.weight.dtype == getattr(torch, dtype)
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    tokenizer = Tokenizer.load(tmp_path / "model")
    assert raw["architectures"] == ["Phi3ForCausalLM"]
    assert raw["eos_token_id"] == list(ChatFormat.phi4(tokenizer).stop_ids)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    messages = [{"role": "user", "content": "Anna has 45 apples."}]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = ChatFormat.phi4(tokenizer).render(messages, generation_prompt=True).ids
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids


def test_other_logits_close_the_gate(tmp_path, trained, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(hf, "logit_difference", lambda *_: 0.5)
    with pytest.raises(PhikitError, match=r"differ by up to 5\.00e-01, more than 1\.00e-03"):
        run_hf(Context(tmp_path), CONFIG, {"model": trained})
    assert not (tmp_path / "parity.json").exists()


def test_other_text_closes_the_gate(tmp_path, trained, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(hf, "reference_greedy", lambda *_: [1, 2, 3])
    with pytest.raises(PhikitError, match="transformers continues 'Anna has 3 apples"):
        run_hf(Context(tmp_path), CONFIG, {"model": trained})


def test_without_transformers_it_says_so(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(hf.importlib.util, "find_spec", lambda name: None)
    summary = run_hf(Context(tmp_path), CONFIG, {"model": trained})
    assert summary["checked"] is False
    assert "parity not checked: transformers is not installed" in summary["parity"]
    assert load(tmp_path / "model").config.max_positions == 256


def test_nothing_to_export(tmp_path):
    with pytest.raises(PhikitError, match="there is no folder model/ in it"):
        run_hf(Context(tmp_path / "out"), CONFIG, {"model": tmp_path})


def test_the_stage_can_be_named():
    assert [s.verb for s in STAGES] == ["export.hf"]
