"""The released layout, its configuration file, and model directories."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flash_fixtures import CONFIG, made, random_ids
from safetensors.torch import load_file

import phikit
from phikit.errors import PhikitError
from phikit.models.architectures import build
from phikit.models.checkpoint import save
from phikit.models.flash.config import PHI_4_MINI_FLASH, Kind, from_hf, to_hf
from phikit.models.flash.model import Flash

# What matters of the published config.json; token ids are its class's defaults.
PUBLISHED: dict[str, Any] = {
    "architectures": ["Phi4FlashForCausalLM"], "model_type": "phi4flash", "vocab_size": 200064,
    "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32,
    "num_attention_heads": 40, "num_key_value_heads": 20, "max_position_embeddings": 262144,
    "sliding_window": 512, "hidden_act": "silu", "layer_norm_eps": 1e-5, "mb_per_layer": 2,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def released_tensors() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published files, written down layer by layer."""
    d, inner, f = 2560, 5120, 10240
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (200064, d),
        "model.final_layernorm.weight": (d,), "model.final_layernorm.bias": (d,),
    }  # fmt: skip
    mamba = {
        "A_log": (inner, 16), "D": (inner,),
        "conv1d.weight": (inner, 1, 4), "conv1d.bias": (inner,),
        "in_proj.weight": (2 * inner, d), "x_proj.weight": (192, inner),
        "dt_proj.weight": (inner, 160), "dt_proj.bias": (inner,), "out_proj.weight": (d, inner),
    }  # fmt: skip
    memory = {"in_proj.weight": (inner, d), "out_proj.weight": (d, inner)}
    core = {f"inner_cross_attn.lambda_{n}": (64,) for n in ("q1", "k1", "q2", "k2")}
    core |= {
        "inner_cross_attn.subln.weight": (128,),
        "out_proj.weight": (d, d),
        "out_proj.bias": (d,),
    }
    own = core | {"Wqkv.weight": (5120, d), "Wqkv.bias": (5120,)}
    cross = core | {"Wqkv.weight": (d, d), "Wqkv.bias": (d,)}
    for i in range(32):
        mixer = (mamba if i <= 16 else memory) if i % 2 == 0 else own if i <= 17 else cross
        rest = {"mlp.fc1.weight": (2 * f, d), "mlp.fc2.weight": (d, f)}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            rest |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
        found |= {f"model.layers.{i}.attn.{n}": s for n, s in mixer.items()}
        found |= {f"model.layers.{i}.{n}": s for n, s in rest.items()}
    return found


def test_names_shapes_and_number_of_parameters_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = build(PHI_4_MINI_FLASH)
    found = {n: tuple(t.shape) for n, t in model.state_dict().items() if n != "lm_head.weight"}
    assert found == released_tensors()
    assert len(found) == 434  # entries of the published index of the weight files
    assert model.lm_head.weight is model.model.embed_tokens.weight
    count = sum(p.numel() for p in model.parameters())
    assert count == PHI_4_MINI_FLASH.parameters == 3_852_562_944
    for index, layer in enumerate(model.model.layers):
        held = sum(p.numel() for p in layer.parameters())
        assert held == PHI_4_MINI_FLASH.layer_parameters(index)


def test_the_papers_count_leaves_small_tensors_out_and_has_one_block_too_many() -> None:
    large = ("embed_tokens", "in_proj", "out_proj.weight", "Wqkv.weight", "mlp.")
    big = 0
    for name, shape in released_tensors().items():
        if any(part in name for part in large) and len(shape) == 2:
            big += shape[0] * shape[1]
    assert PHI_4_MINI_FLASH.parameters - big == 17_723_904
    assert round((big + 2560**2) / 1e6, 1) == 3841.4
    assert round((big + 2560**2 - 200064 * 2560) / 1e6, 1) == 3329.2


def test_layers_are_those_of_the_paper() -> None:
    kinds = [PHI_4_MINI_FLASH.kind(i) for i in range(32)]
    assert kinds[:16] == [Kind.MAMBA, Kind.WINDOW] * 8
    assert kinds[16:18] == [Kind.MAMBA, Kind.FULL]
    assert kinds[18:] == [Kind.GMU, Kind.CROSS] * 7


@pytest.mark.parametrize("window", [512, [None, 512] * 8 + [None] * 16])
def test_the_published_config_is_read(window: Any) -> None:
    config = from_hf(PUBLISHED | {"sliding_window": window})
    assert config == replace(PHI_4_MINI_FLASH, bos_id=None, eos_ids=(), pad_id=None)


def test_config_json_brings_the_same_shape_back() -> None:
    for config in (PHI_4_MINI_FLASH, CONFIG):
        assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mb_per_layer": 1}, "'mb_per_layer' is 1"),
        ({"mlp_bias": True}, "'mlp_bias' is True"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"num_hidden_layers": 30}, "has 30 layers"),
        ({"num_key_value_heads": 5}, "cannot pair 40 query heads with 5"),
        ({"sliding_window": [None] * 32}, "sliding_window"),
    ],
)
def test_another_topology_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PhikitError, match=said):
        from_hf(PUBLISHED | change)
    with pytest.raises(PhikitError, match=r"there\.json: the key 'hidden_size' is missing"):
        from_hf({k: v for k, v in PUBLISHED.items() if k != "hidden_size"}, "there.json")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_the_same_when_it_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    model = made(dtype)
    save(model, tmp_path / "model")
    held = load_file(tmp_path / "model" / "model.safetensors")
    assert "lm_head.weight" not in held
    assert held["model.layers.0.attn.A_log"].dtype == torch.float32
    again = phikit.load(tmp_path / "model")
    assert isinstance(again, Flash) and again.config == CONFIG
    assert again.lm_head.weight is again.model.embed_tokens.weight
    for (name, mine), theirs in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), name
    ids = random_ids(2, 9)
    assert torch.equal(model(ids), again(ids))


def test_a_directory_with_a_wrong_tensor_is_refused_by_its_name(tmp_path: Path) -> None:
    model = made(torch.float32)
    save(model, tmp_path / "model")
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    raw["mamba_dt_rank"] = 6
    (tmp_path / "model" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(PhikitError, match=r"mis-shaped  model.layers.0.attn.x_proj.weight"):
        phikit.load(tmp_path / "model")


def test_new_weights_are_those_that_mamba_starts_from() -> None:
    model = Flash(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    mamba, attention = model.model.layers[0].attn, model.model.layers[1].attn
    torch.testing.assert_close(mamba.rates(), -torch.tensor([1.0, 2, 3])[:, None].expand(3, 64))
    steps = torch.nn.functional.softplus(mamba.dt_proj.bias)
    assert steps.min() >= 0.00099 and steps.max() <= 0.1001
    assert (
        attention.Wqkv.bias.abs().max() == 0 and attention.inner_cross_attn.subln.weight.min() == 1
    )
    assert 0.03 < attention.inner_cross_attn.lambda_q1.std() < 0.3
    twin = Flash(CONFIG)
    twin.init_weights(torch.Generator().manual_seed(0))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_costs_grow_as_the_layers_do() -> None:
    config = PHI_4_MINI_FLASH
    assert config.cache_bytes(513) - config.cache_bytes(512) == 4 * 20 * 64
    state = made(torch.bfloat16).new_state(1)
    held = state.slots.bytes_per_row + 4 * CONFIG.kv_heads * CONFIG.head_dim * 20
    assert CONFIG.cache_bytes(20) == held
    more = config.flops_per_token(2000) - config.flops_per_token(1000)
    assert more == 6.0 * 2560 * 8 * 1000
