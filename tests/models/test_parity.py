"""The decoder and the engine against transformers, with the same weights in float32."""

from dataclasses import replace

import pytest
import torch

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.models.checkpoint import fill, fuse_llama, load, save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig, LongRope, from_hf

transformers = pytest.importorskip("transformers")

BASE = DecoderConfig(
    vocab_size=120, hidden_size=32, intermediate_size=48, layers=3, heads=4, kv_heads=2,
    head_dim=8, max_positions=96, rope_theta=1000.0, eos_ids=(3,), pad_id=0,
)  # fmt: skip
LONG = LongRope((1.0, 1.2, 1.4), (1.3, 2.2, 5.0), original_max_positions=24)
PHI3 = {
    "untied": BASE,
    "tied": replace(BASE, tied=True),
    "partial": replace(BASE, rope_fraction=0.5),
    "longrope": replace(BASE, rope_fraction=0.75, long_rope=LONG, tied=True),
    "window": replace(BASE, sliding_window=9),
}


def make(config, seed=0):
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
            else:  # a norm of ones would hide a forgotten one
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def reference(model, folder):
    """The same model as transformers reads it from what phikit writes."""
    save(model, folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def close(a, b):
    return float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


def prompt_ids(length, seed=1, rows=2):
    return torch.randint(4, 120, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("name", PHI3)
@pytest.mark.parametrize("length", [1, 24, 60])  # 24 and 60: either side of LongRoPE's border
def test_prefill(tmp_path, name, length):
    model = make(PHI3[name])
    theirs = reference(model, tmp_path)
    assert type(theirs).__name__ == "Phi3ForCausalLM"
    ids = prompt_ids(length)
    assert close(model(ids), theirs(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["untied", "partial", "window"])
def test_left_padding_through_positions(tmp_path, name):
    """Positions start anew at the first real token; masked padding is never seen."""
    model = make(PHI3[name])
    theirs = reference(model, tmp_path)
    ids = prompt_ids(20, rows=1)
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.int64), ids), dim=1)
    mask = (torch.arange(25) >= 5).long()[None]
    position = (torch.arange(25) - 5).clamp(min=0)[None]
    expected = theirs(padded, attention_mask=mask, position_ids=position).logits[:, 5:]
    assert close(model(ids), expected)
    moved = model(ids, torch.arange(5, 25)[None])  # only relative positions count
    assert close(moved, expected)


@pytest.mark.parametrize("name", ["untied", "tied", "longrope"])
def test_gradients(tmp_path, name):
    model = make(PHI3[name])
    theirs = reference(model, tmp_path)
    ids = prompt_ids(40)
    for module, logits in ((model, model(ids)), (theirs, theirs(ids).logits)):
        module.zero_grad()
        torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        ).backward()
    found = dict(theirs.named_parameters())
    for key, parameter in model.named_parameters():
        assert close(parameter.grad, found[key].grad), key


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_llama(tmp_path, tied):
    raw = transformers.LlamaConfig(
        vocab_size=120, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=96,
        rope_theta=700.0, rms_norm_eps=1e-6, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(raw).eval()
    for parameter in theirs.parameters():
        parameter.mul_(4) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert (model.config.rope_theta, model.config.norm_eps, model.config.tied) == (700, 1e-6, tied)
    ids = prompt_ids(50)
    assert close(model(ids), theirs(ids).logits)
    check_generation(model, theirs, [ids[0, :5], ids[1, :33]], 30)


@torch.no_grad()
@pytest.mark.parametrize("name", PHI3)
def test_greedy_generation(tmp_path, name):
    """One batch of prompts that stay below LongRoPE's border, cross it, and begin above it."""
    model = make(PHI3[name])
    theirs = reference(model, tmp_path)
    ids = prompt_ids(50, rows=4)
    check_generation(model, theirs, [ids[0, :3], ids[1, :20], ids[2, :24], ids[3, :40]], 18)


def check_generation(model, theirs, prompts, count):
    sampling = Sampling(temperature=0, max_tokens=count)
    asked = [Request(tuple(p.tolist()), sampling) for p in prompts]
    ours = collect(LocalEngine(model, max_batch=3), asked)
    for prompt, group in zip(prompts, ours, strict=True):
        out = theirs.generate(
            prompt[None], attention_mask=torch.ones_like(prompt[None]), do_sample=False,
            max_new_tokens=count, min_new_tokens=count, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        assert group[0].completion_ids == tuple(out[0, len(prompt) :].tolist())


def test_llama_parts_must_be_complete():
    model = Decoder(BASE)
    parts = iter([("model.layers.0.self_attn.q_proj.weight", torch.zeros(32, 32))])
    with pytest.raises(Exception, match=r"qkv_proj.weight cannot be fused: only q_proj"):
        fill(model, fuse_llama(parts), "here")


def test_configurations_of_transformers_5_are_read():
    """It writes RoPE's settings under `rope_parameters`."""
    raw = transformers.Phi3Config(
        vocab_size=120, hidden_size=32, num_attention_heads=4, num_hidden_layers=1, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0, "partial_rotary_factor": 0.5},
        architectures=["Phi3ForCausalLM"],
    )  # fmt: skip
    config = from_hf(raw.to_dict())
    assert (config.rope_theta, config.rope_fraction) == (777.0, 0.5)
