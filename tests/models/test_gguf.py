"""GGUF files that the tests write: shapes, names, tokenizers, and what is said of broken files."""

import json
from dataclasses import replace
from pathlib import Path

import gguf_writer
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phikit.chat.gguf import tokenizer_of
from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import train_bpe
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig, LongRope
from phikit.models.gguf import GGUF, config_of, load_gguf

DENSE = DecoderConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, head_dim=8,
    max_positions=128, rope_theta=5000.0, bos_id=1, eos_ids=(2,), pad_id=3,
)  # fmt: skip
LONG = replace(
    DENSE, rope_fraction=0.75, tied=True, long_rope=LongRope((1.0,) * 3, (1.0, 2.0, 4.0), 32)
)


def interleave(w_OD: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to the rows of query and key matrices of Llama models."""
    rows, columns = w_OD.shape
    return w_OD.view(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def metadata(config: DecoderConfig, kind: str) -> dict[str, object]:
    found: dict[str, object] = {
        "general.architecture": kind,
        f"{kind}.block_count": config.layers,
        f"{kind}.context_length": config.max_positions,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": config.heads,
        f"{kind}.attention.head_count_kv": config.kv_heads,
        f"{kind}.attention.layer_norm_rms_epsilon": config.norm_eps,
        f"{kind}.attention.sliding_window": 0,
        f"{kind}.rope.freq_base": config.rope_theta,
        f"{kind}.rope.dimension_count": config.rotary_dim,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 3,
    }
    if config.long_rope:
        original = config.long_rope.original_max_positions
        found[f"{kind}.rope.scaling.original_context_length"] = original
    return found


def tensors(model: Decoder, kind: str) -> dict[str, gguf_writer.Raw]:
    c, found = model.config, {}
    rename = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
    }  # fmt: skip
    for name, weight in model.state_dict().items():
        if c.tied and name == "lm_head.weight":
            continue
        for old, new in rename.items():
            name = name.replace(old, new)
        parts = {name: weight}
        stem = name.rpartition(".")[0].rpartition(".")[0]
        if kind == "llama" and "attn_qkv" in name:
            sizes = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim)
            q, k, v = weight.split(sizes)
            parts = {
                f"{stem}.attn_q.weight": interleave(q, c.heads),
                f"{stem}.attn_k.weight": interleave(k, c.kv_heads),
                f"{stem}.attn_v.weight": v,
            }
        elif kind == "llama" and "ffn_up" in name:
            gate, up = weight.chunk(2)
            parts = {f"{stem}.ffn_gate.weight": gate, f"{stem}.ffn_up.weight": up}
        found |= {n: gguf_writer.f32(w.numpy()) for n, w in parts.items()}
    if c.long_rope:
        for name, factor in (
            ("short", c.long_rope.short_factor), ("long", c.long_rope.long_factor),
        ):  # fmt: skip
            found[f"rope_factors_{name}.weight"] = gguf_writer.f32(np.array(factor))
    return found


@pytest.fixture
def model(request) -> Decoder:
    decoder = Decoder(request.param)
    decoder.init_weights(torch.Generator().manual_seed(0))
    return decoder.eval()


@pytest.mark.parametrize(
    ("model", "kind"), [(DENSE, "llama"), (DENSE, "phi3"), (LONG, "phi3")], indirect=["model"]
)
@pytest.mark.parametrize("version", [2, 3])
@torch.no_grad()
def test_a_written_model_comes_back(model: Decoder, kind: str, version: int, tmp_path) -> None:
    path = tmp_path / "model.gguf"
    gguf_writer.write(path, metadata(model.config, kind), tensors(model, kind), version)
    assert config_of(GGUF(path)) == model.config
    loaded = load_gguf(path, torch.float32)
    assert not loaded.training
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert load_gguf(path).lm_head.weight.dtype == torch.bfloat16
    ids = torch.arange(1, 50)[None]
    assert torch.equal(loaded(ids), model(ids))


def test_quantised_tensors_are_decoded_in_pieces_to_the_same(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 255, (40, 4, 34), dtype=np.uint8)
    raw[..., 1] = 0x2C  # scales of about 0.07
    path = tmp_path / "one.gguf"
    gguf_writer.write(path, {}, {"w": (8, (40, 128), raw.tobytes())})
    whole = GGUF(path).tensor("w")
    quants = torch.from_numpy(raw[..., 2:].copy().view(np.int8))
    scales = torch.from_numpy(raw[..., :2].copy().view("<f2").astype(np.float32))
    assert torch.equal(whole, (quants * scales).view(40, 128))
    monkeypatch.setattr("phikit.models.gguf._CHUNK", 96)
    assert torch.equal(GGUF(path).tensor("w"), whole)
    assert torch.equal(GGUF(path).tensor("w", torch.bfloat16), whole.bfloat16())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    decoder = Decoder(replace(DENSE, vocab_size=8, layers=1))
    some = {**metadata(DENSE, "phi3"), "list": ["a", "b"], "flag": True, "nested": [[1, 2], [3]]}
    gguf_writer.write(path, some, tensors(decoder, "phi3"))
    file = GGUF(path)
    assert (file.metadata["flag"], file.metadata["nested"]) == (True, [[1, 2], [3]])
    return path.read_bytes()


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_file_is_named_wherever_it_ends(whole, tmp_path, data) -> None:
    path = tmp_path / "cut.gguf"
    cut = data.draw(st.integers(0, len(whole) - 64))
    path.write_bytes(whole[:cut])
    with pytest.raises(PhikitError, match=r"cut\.gguf"):
        GGUF(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "qwen2"}, "architecture 'qwen2'"),
        ({"general.architecture": None}, "'general.architecture' is missing"),
        ({"phi3.embedding_length": None}, "'phi3.embedding_length' is missing"),
        ({"phi3.feed_forward_length": 40}, r"mis-shaped  model.layers.0.mlp.gate_up_proj.weight"),
    ],
)
def test_a_file_of_something_else_is_refused(change, said: str, tmp_path) -> None:
    held = {k: v for k, v in (metadata(DENSE, "phi3") | change).items() if v is not None}
    path = tmp_path / "other.gguf"
    gguf_writer.write(path, held, tensors(Decoder(DENSE), "phi3"))
    with pytest.raises(PhikitError, match=said):
        load_gguf(path)


def test_tensors_that_cannot_be_used_are_named(tmp_path) -> None:
    path = tmp_path / "t.gguf"
    gguf_writer.write(path, {}, {"a.weight": (10, (4, 256), b"\0" * 400)})
    with pytest.raises(PhikitError, match=r"'a.weight' is Q2_K"):
        GGUF(path)
    gguf_writer.write(path, {}, {"a.weight": (8, (4, 40), b"\0" * 400)})
    with pytest.raises(PhikitError, match=r"blocks of 32"):
        GGUF(path)
    gguf_writer.write(path, {}, {}, version=1)
    with pytest.raises(PhikitError, match="version 1"):
        GGUF(path)
    held = tensors(Decoder(DENSE), "phi3") | {"blk.0.attn_qkv.bias": gguf_writer.f32(np.ones(4))}
    gguf_writer.write(path, metadata(DENSE, "phi3"), held)
    with pytest.raises(PhikitError, match=r"'blk.0.attn_qkv.bias' .*no place"):
        load_gguf(path)


# --- tokenizers ----------------------------------------------------------------------------------


def tokenizer_metadata(pre: str) -> tuple[dict[str, object], list[str]]:
    learnt = train_bpe(["some words are there, there are 12 words\n"] * 9, 300, NANO_SPECIAL)
    vocab = sorted(learnt._fast.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    words = [token for token, _ in vocab]
    merges = [m for m in _merges(learnt) if m]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [3 if w in NANO_SPECIAL else 1 for w in words],
        "tokenizer.ggml.eos_token_id": words.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": words.index("<|pad|>"),
        "tokenizer.chat_template": "{{ messages }}",
    }, words


def _merges(tokenizer) -> list[str]:
    return [" ".join(m) for m in json.loads(tokenizer._fast.to_str())["model"]["merges"]]


@pytest.mark.parametrize(
    ("pre", "cut"),
    [
        ("smollm", ["are", "Ġ", "1", "2", "3", "4"]),
        ("gpt-2", ["are", "Ġ1234"]),
        ("dbrx", ["are", "Ġ", "123", "4"]),
        ("gpt-4o", ["are", "Ġ", "123", "4"]),
    ],
)
def test_the_tokenizer_comes_with_its_way_to_cut_words(pre: str, cut, tmp_path: Path) -> None:
    held, words = tokenizer_metadata(pre)
    path = tmp_path / "t.gguf"
    gguf_writer.write(path, held, {})
    tokenizer = tokenizer_of(GGUF(path))
    assert [w for w, _ in tokenizer._plain.pre_tokenizer.pre_tokenize_str("are 1234")] == cut
    assert tokenizer.special == {t: words.index(t) for t in NANO_SPECIAL}
    text = "some words <|im_end|> are 12 é\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.config["eos_token"] == "<|im_end|>"
    assert tokenizer.config["pad_token"] == "<|pad|>"
    assert tokenizer.config["chat_template"] == "{{ messages }}"


def test_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    held, _ = tokenizer_metadata("starcoder")
    path = tmp_path / "t.gguf"
    gguf_writer.write(path, held, {})
    with pytest.raises(PhikitError, match=r"'starcoder'(.|\n)*smollm"):
        tokenizer_of(GGUF(path))
    gguf_writer.write(path, held | {"tokenizer.ggml.model": "llama"}, {})
    with pytest.raises(PhikitError, match="'llama'"):
        tokenizer_of(GGUF(path))
