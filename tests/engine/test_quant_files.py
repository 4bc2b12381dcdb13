"""Quantised model directories: written, loaded, run; and the wrong ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_fixtures import CONFIGS, make

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.load import load
from phikit.engine.local import LocalEngine
from phikit.engine.quant import check, files, gptq, settings
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme, dequantise, quantise
from phikit.engine.quant.settings import Settings
from phikit.errors import PhikitError
from phikit.models import checkpoint
from phikit.models.decoder import Decoder

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


@pytest.fixture(params=["phi", "llama"])
def dense(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An untied model, and a tied one whose head gets a copy of its own."""
    model = make(replace(CONFIGS[request.param], **SIZES)).to(torch.bfloat16)
    checkpoint.save(model, tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_saved_model_is_the_rounded_one(dense: Path, tmp_path: Path, kind: str) -> None:
    how = Settings(Scheme(kind, 0 if kind == "int8" else 32))
    files.convert(dense, tmp_path / "small", how)
    model, original = load(tmp_path / "small"), load(dense)
    assert isinstance(model, Decoder)
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantLinear):
            continue
        w = original.get_submodule(name).weight.detach()
        expected = dequantise(*quantise(w, how.scheme)).to(torch.bfloat16)
        assert torch.equal(layer.dense(), expected), name
    packed = {n for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    assert len(packed) == 4 * model.config.layers + 1 and "lm_head" in packed
    assert torch.equal(model.model.embed_tokens.weight, original.model.embed_tokens.weight)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        distance = check.distances(original, [model], ids)[0]
    assert 0 < distance.kl < (0.01 if kind == "int8" else 3.0)
    requests = [Request((5, 6, 7), Sampling(max_tokens=9), n=2)]
    assert [len(r.completion_ids) for r in collect(LocalEngine(model), requests)[0]] == [9, 9]


def test_the_head_is_a_setting(dense: Path, tmp_path: Path) -> None:
    for head, expected in (("bf16", None), ("int8", Scheme("int8", 32)), ("same", Scheme())):
        files.convert(dense, tmp_path / head, Settings(head=head))
        layer = load(tmp_path / head).lm_head
        assert (layer.scheme if isinstance(layer, QuantLinear) else None) == expected
    tied = load(tmp_path / "bf16")
    if tied.config.tied:
        head, embedding = tied.lm_head.weight, tied.model.embed_tokens.weight
        assert head.data_ptr() == embedding.data_ptr()


def test_weights_are_the_mapped_file(dense: Path, tmp_path: Path) -> None:
    files.convert(dense, tmp_path / "small", Settings())
    layer = load(tmp_path / "small").model.layers[0].mlp.down_proj
    mapped = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
    if not mapped:
        pytest.skip("this system does not show its mappings")
    spans = [line.split() for line in mapped.splitlines() if "small/model-0" in line]
    address = layer.data.data_ptr()
    assert any(int(a, 16) <= address < int(b, 16) for a, b in (s[0].split("-") for s in spans))


def test_wrong_directories_are_named(dense: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    files.convert(dense, small, Settings())
    with pytest.raises(PhikitError, match="quantised already"):
        files.convert(small, tmp_path / "again", Settings())
    raw = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(
        json.dumps(raw | {"quantization_config": {"quant_method": "awq"}})
    )
    with pytest.raises(PhikitError, match="'awq'"):
        load(small)
    newer = raw["quantization_config"] | {"version": 2}
    (small / "config.json").write_text(json.dumps(raw | {"quantization_config": newer}))
    with pytest.raises(PhikitError, match="version 2"):
        load(small)
    other = raw["quantization_config"] | {"layers": {"kind": "int4", "group": 64}}
    (small / "config.json").write_text(json.dumps(raw | {"quantization_config": other}))
    with pytest.raises(PhikitError, match="packed"):
        load(small)
    (small / "config.json").write_text(json.dumps(raw))
    name = next(small.glob("*.safetensors"))
    name.write_bytes(name.read_bytes()[:-100])
    with pytest.raises(PhikitError, match="truncated"):
        load(small)


def test_settings_are_checked() -> None:
    with pytest.raises(PhikitError, match="rtn, gptq"):
        Settings(method="awq")
    with pytest.raises(PhikitError, match="head 'int3'"):
        Settings(head="int3")
    with pytest.raises(PhikitError, match="no linear layer"):
        settings.targets(torch.nn.Linear(8, 8, bias=True), Settings())
    odd = torch.nn.Linear(96, 16, bias=False)
    assert Settings(Scheme("int4", 128)).of_layer("x", odd) == Scheme("int4", 32)
    assert Settings().of_layer("x.lora_A", odd) is None


def test_gptq_loses_less_on_the_inputs_it_saw() -> None:
    """Inputs that go together, as a model's do: errors of one column can be made up in others."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(128, 128, generator=generator) * torch.logspace(0, -2, 128)
    x = torch.randn(2000, 128, generator=generator) @ mix.T
    w = torch.randn(64, 128, generator=generator)
    seen = gptq.Inputs(128)
    seen.add(x.view(4, 500, 128))
    for scheme in (Scheme("int4", 32), Scheme("int8", 0)):
        exact = x @ w.T

        def loss(q: tuple[torch.Tensor, torch.Tensor], exact: torch.Tensor = exact) -> float:
            return float((x @ dequantise(*q).T - exact).norm() / exact.norm())

        assert loss(gptq.quantise(w, scheme, seen.moment_KK)) < 0.5 * loss(quantise(w, scheme))


def test_gptq_with_inputs_that_are_never_there() -> None:
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    x[:, 5] = 0
    seen = gptq.Inputs(64)
    seen.add(x)
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    q, scale = gptq.quantise(w, Scheme("int4", 32), seen.moment_KK)
    assert torch.isfinite(dequantise(q, scale)).all()
    assert (x @ dequantise(q, scale).T - x @ w.T).norm() < 0.12 * (x @ w.T).norm()
