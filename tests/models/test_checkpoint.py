"""Model directories: what is written is read back, and what is wrong is named."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from phikit.errors import PhikitError
from phikit.models.checkpoint import load, save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig, LongRope, from_hf, to_hf

CONFIG = DecoderConfig(
    vocab_size=50, hidden_size=16, intermediate_size=24, layers=2, heads=4, kv_heads=2,
    head_dim=4, max_positions=32, bos_id=1, eos_ids=(3, 4), pad_id=0,
)  # fmt: skip
PHI4 = DecoderConfig(
    vocab_size=100352, hidden_size=5120, intermediate_size=17920, layers=40, heads=40,
    kv_heads=10, head_dim=128, max_positions=16384, rope_theta=250_000.0,
)  # fmt: skip
MINI = DecoderConfig(
    vocab_size=200064, hidden_size=3072, intermediate_size=8192, layers=32, heads=24, kv_heads=8,
    head_dim=128, max_positions=131072, rope_fraction=0.75, tied=True,
)  # fmt: skip


def make(config=CONFIG):
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def rewrite(folder, change):
    """Changes the tensors of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("config, count", [(PHI4, 14_659_507_200), (MINI, 3_836_021_760)])
def test_published_parameter_counts(config, count):
    with torch.device("meta"):
        model = Decoder(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters == count


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(tmp_path, tied, dtype):
    model = make(replace(CONFIG, tied=tied))
    save(model, tmp_path, dtype)
    again = load(tmp_path)
    assert again.config == model.config
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(dtype)), name
    assert load(tmp_path, torch.float32).lm_head.weight.dtype == torch.float32
    names = set(load_file(tmp_path / "model.safetensors"))
    assert ("lm_head.weight" in names) != tied
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [3, 4]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, rope_fraction=0.5, long_rope=LongRope((1.0,), (2.5,), 8), tied=True),
        replace(CONFIG, sliding_window=5, rope_theta=123.0, norm_eps=1e-6, eos_ids=()),
    ],
)
def test_configurations_come_back(config):
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


def test_sharded_weights(tmp_path):
    model = make()
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({n: tensors[n] for n in part}, tmp_path / file)
    index = {"weight_map": {n: file for file, part in shards.items() for n in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    again = load(tmp_path)
    assert all(torch.equal(again.state_dict()[n], t) for n, t in model.state_dict().items())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(PhikitError, match=r"names files that are not there: b\.safetensors"):
        load(tmp_path)


def test_a_missing_tensor(tmp_path):
    save(make(), tmp_path)
    rewrite(tmp_path, lambda t: t.pop("model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(PhikitError, match=r"missing +model\.layers\.1\.mlp\.down_proj\.weight"):
        load(tmp_path)


def test_a_missing_head_of_an_untied_model(tmp_path):
    save(make(), tmp_path)
    rewrite(tmp_path, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(PhikitError, match=r"missing +lm_head\.weight \(50, 16\)"):
        load(tmp_path)


def test_a_missing_embedding_of_a_tied_model(tmp_path):
    save(make(replace(CONFIG, tied=True)), tmp_path)
    rewrite(tmp_path, lambda t: t.pop("model.embed_tokens.weight"))
    with pytest.raises(PhikitError, match=r"missing +.*(embed_tokens|lm_head)\.weight"):
        load(tmp_path)


def test_an_unexpected_tensor(tmp_path):
    save(make(), tmp_path)
    rewrite(tmp_path, lambda t: t.update({"model.layers.0.self_attn.qkv_proj.bias": torch.ones(3)}))
    with pytest.raises(PhikitError, match=r"unexpected +\S+qkv_proj\.bias \(3,\)"):
        load(tmp_path)


def test_a_misshaped_tensor(tmp_path):
    save(make(), tmp_path)
    rewrite(tmp_path, lambda t: t.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(PhikitError, match=r"mis-shaped +model\.norm\.weight: file \(7,\), model"):
        load(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 100, 3000])
def test_a_truncated_file(tmp_path, left):
    save(make(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(PhikitError, match=r"model\.safetensors: corrupt or truncated"):
        load(tmp_path)


def test_pickles_are_never_read(tmp_path):
    save(make(), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(PhikitError, match=r"pytorch_model\.bin are pickles, which are never read"):
        load(tmp_path)


def test_no_configuration_or_another_architecture(tmp_path):
    with pytest.raises(PhikitError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))
    with pytest.raises(PhikitError, match="'MambaForCausalLM' is not an architecture that"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Phi3ForCausalLM"]}))
    with pytest.raises(PhikitError, match="the key 'vocab_size' is missing"):
        load(tmp_path)


def test_shapes_that_cannot_be():
    with pytest.raises(PhikitError, match="4 query heads cannot share 3"):
        replace(CONFIG, kv_heads=3)
    with pytest.raises(PhikitError, match="must be even"):
        replace(CONFIG, rope_fraction=0.25)


def test_large_models_are_written_in_shards(tmp_path):
    model = make(replace(CONFIG, tied=True))
    total = sum(p.numel() * 2 for p in model.parameters())
    save(model, tmp_path, torch.bfloat16, shard_bytes=total // 3)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors" and len(shards) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    held = {n: shard.name for shard in shards for n in load_file(shard)}
    assert index["weight_map"] == held and "lm_head.weight" not in held
    again = load(tmp_path).state_dict()
    assert all(torch.equal(again[n], t.bfloat16()) for n, t in model.state_dict().items())
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(theirs[n], t) for n, t in again.items())


def test_a_shard_that_holds_a_foreign_tensor_and_lacks_another(tmp_path):
    """Every wrong tensor is in the one error, with its name and shape."""
    save(make(), tmp_path, shard_bytes=2000)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    gone = next(iter(tensors))
    tensors["strange"] = tensors.pop(gone)[:1].clone()
    save_file(tensors, shard)
    with pytest.raises(PhikitError) as e:
        load(tmp_path)
    assert f"missing     {gone} (" in str(e.value) and "unexpected  strange (1" in str(e.value)


MEASURE = """
import sys, torch
from pathlib import Path
from phikit.memory import PeakMemory
from phikit.models import checkpoint
import phikit.models.decoder
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith("VmRSS"))
checkpoint.load(sys.argv[2])  # a tiny one, so that what torch itself loads is not counted
before = resident()
with PeakMemory() as peak:
    model = checkpoint.load(sys.argv[1], torch.bfloat16)
print(peak.bytes - before, sum(p.numel() * 2 for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("dtype", "shard_bytes"), [(torch.bfloat16, 10**10), (torch.float32, 3 * 10**8)]
)
def test_loading_takes_little_more_memory_than_the_model(tmp_path, dtype, shard_bytes):
    """600 MB in bf16, a third of it the embedding, from files of either precision."""
    config = DecoderConfig(
        vocab_size=100_000, hidden_size=1024, intermediate_size=4096, layers=13, heads=8,
        kv_heads=4, head_dim=128, max_positions=64, tied=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = Decoder(config).to(dtype)
    model = model.to_empty(device="cpu")
    model.lm_head.weight = model.model.embed_tokens.weight
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    save(model, tmp_path, shard_bytes=shard_bytes)
    save(make(), tmp_path / "tiny")
    del model
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), str(tmp_path / "tiny")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, size = map(int, done.stdout.split())
    assert size > 6e8
    print(peak / size)
    assert peak <= 1.15 * size, f"{peak / size:.3f} times the model"
