"""Plans against published runs, and against a module's own operations."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from phikit.cli import app
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.models.family import config
from phikit.models.gpus import GPUS
from phikit.models.plan import DAY, serving, training
from phikit.models.sizes import sizes
from phikit.models.throughput import YARDSTICKS, Setting, step

H100, A100 = GPUS["h100"], GPUS["a100"]


@pytest.mark.parametrize(
    ("name", "gpu", "gpus", "tokens", "utilisation"),
    [("phi-4", H100, 1920, 9.8e12, 0.25), ("phi-4-mini", A100, 512, 5e12, 0.45)],
)
def test_published_runs_of_21_days(name, gpu, gpus, tokens, utilisation) -> None:
    """The model cards' tokens, GPUs and days, at the utilisation that goes with them."""
    run = training(config(name), gpu, Setting(gpus, 4096), tokens, 2.0, utilisation)
    assert run.seconds / DAY == pytest.approx(21, rel=0.1)
    assert run.cost == pytest.approx(run.seconds / 3600 * gpus * 2.0)
    assert run.memory < gpu.memory


HBM2E, H200 = GPUS["h100-hbm2e"], GPUS["h200"]
FSDP_8 = Setting(8, 8192, sequences=2, recompute="selective")
FSDP_128 = replace(FSDP_8, gpus=128)
CP = Setting(8, 32_768, float8=True)
TP = Setting(256, 8192, sequences=16, tensor=8, float8=True)
PP = Setting(512, 8192, sequences=32, tensor=8, pipeline=8, float8=True, async_tensor=True)
LONG = replace(PP, context=32_768, sequences=8)
# torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 to 6, and (the H200 rows)
# benchmarks/llama3-8b_h200_202506_trainy-whitefiber.md: tokens per second and GPU. The number of
# microbatches is not stated there; 8, one per stage, is torchtitan's default.
PUBLISHED = [
    ("8b", HBM2E, replace(FSDP_8, compiled=False), 5762),
    ("8b", HBM2E, FSDP_8, 6667),
    ("8b", HBM2E, replace(FSDP_8, float8=True), 8532),
    ("8b", HBM2E, CP, 3890),
    ("8b", HBM2E, replace(CP, context=65_536, context_parallel=2), 2540),
    ("8b", HBM2E, replace(CP, context=131_072, context_parallel=4), 1071),
    ("8b", HBM2E, replace(CP, context=262_144, context_parallel=8), 548),
    ("8b", HBM2E, replace(FSDP_128, compiled=False), 5605),
    ("8b", HBM2E, FSDP_128, 6514),
    ("8b", HBM2E, replace(FSDP_128, float8=True), 8380),
    ("8b", H200, replace(FSDP_8, gpus=32, float8=True), 10_938),
    ("8b", H200, replace(FSDP_8, gpus=64, float8=True), 10_753),
    ("70b", HBM2E, TP, 829),
    ("70b", HBM2E, replace(TP, async_tensor=True), 876),
    ("405b", HBM2E, PP, 100),
    ("405b", HBM2E, replace(PP, chunks=2), 128),
    ("405b", HBM2E, LONG, 76),
    ("405b", HBM2E, replace(LONG, context=65_536, context_parallel=2), 47),
    ("405b", HBM2E, replace(LONG, context=131_072, context_parallel=4), 31),
    ("405b", HBM2E, replace(LONG, context=262_144, context_parallel=8), 16),
]


@pytest.mark.parametrize(("model", "gpu", "setting", "published"), PUBLISHED)
def test_torchtitan_s_throughputs_are_met_within_15_percent(model, gpu, setting, published) -> None:
    shape = YARDSTICKS[f"llama-3.1-{model}"]
    found = step(shape, gpu, setting).tokens_per_second
    assert found == pytest.approx(published, rel=0.15)
    run = training(shape, gpu, setting, 1e12, 2.0)
    assert run.tokens_per_second_per_gpu == pytest.approx(found)


def test_the_yardsticks_have_their_published_sizes() -> None:
    billions = {name: shape.parameters / 1e9 for name, shape in YARDSTICKS.items()}
    expected = {"llama-3.1-8b": 8.03, "llama-3.1-70b": 70.55, "llama-3.1-405b": 405.85}
    assert billions == pytest.approx(expected, rel=1e-3)


def test_a_slow_network_is_felt_when_batches_are_small() -> None:
    slow = replace(H200, network=1e9)
    far, near = (step(config("phi-4"), g, Setting(64, 4096)) for g in (slow, H200))
    assert far.seconds == far.sharding > near.seconds > near.sharding


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(PhikitError, match="12 GPUs cannot be cut into groups of tensor 8"):
        Setting(12, 4096, tensor=8)
    with pytest.raises(PhikitError, match=r"'al'\n.*did you mean|known"):
        Setting(8, 4096, recompute="al")


def test_operations_are_those_that_torch_counts() -> None:
    """torch counts attention in full, as if every position saw the whole context."""
    shape = DecoderConfig(
        vocab_size=64, hidden_size=32, intermediate_size=80, layers=2, heads=4, kv_heads=2,
        head_dim=8, max_positions=256,
    )  # fmt: skip
    model = Decoder(shape)
    model.init_weights(torch.Generator().manual_seed(0))

    def plain(_, q, k, v):
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        return (q @ k.transpose(2, 3)).softmax(-1) @ v

    length = 64
    with FlopCounterMode(display=False) as counted:
        model(torch.zeros(1, length, dtype=torch.int64), attend=plain).sum().backward()
    run = training(shape, H100, Setting(1, 2 * length), 1.0, 1.0, 1.0)
    # norms have weights but no products
    assert run.flops_per_token * length == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_memory_is_shared_out_but_for_what_is_gathered() -> None:
    one, many = (training(config("phi-4"), H100, Setting(n, 4096), 1e9, 2.0) for n in (1, 64))
    assert one.state == 16 * 14_659_507_200 and one.memory > H100.memory
    assert many.state == one.state / 64
    assert many.activations == one.activations
    assert many.memory < H100.memory
    more = training(config("phi-4"), H100, Setting(64, 4096, sequences=4), 1e9, 2.0)
    assert more.activations == 4 * many.activations


def test_serving_is_bound_by_memory_when_alone_and_by_products_when_full() -> None:
    shape = config("phi-4")
    alone = serving(shape, H100, 1, 4096, "bf16", 1.0, 2.0, sequences=1)
    read = sizes(shape).weight_bytes("bf16") + alone.cache_per_sequence / 2
    assert alone.step_seconds == pytest.approx(read / H100.bandwidth)
    full = serving(shape, H100, 1, 256, "bf16", 1.0, 2.0)
    assert full.sequences == full.fitting
    held = full.weights + full.fitting * full.cache_per_sequence
    assert held <= 0.9 * H100.memory < held + full.cache_per_sequence
    busy = full.tokens_per_second * shape.flops_per_token(128)
    assert busy == pytest.approx(H100.peak)
    small = serving(shape, H100, 1, 4096, "int4", 1.0, 2.0, sequences=1)
    assert small.tokens_per_second > 2 * alone.tokens_per_second
    assert small.cost_per_million < alone.cost_per_million


def test_what_does_not_fit_or_is_not_known_is_said() -> None:
    with pytest.raises(PhikitError, match=r"do not fit: a a100 has 80 GB"):
        serving(config("phi-4"), A100, 1, 16_384, "f32", 0.5, 2.0, sequences=9)
    with pytest.raises(PhikitError, match="'int5'"):
        serving(config("phi-4"), A100, 1, 16_384, "int5", 0.5, 2.0)
    said = CliRunner().invoke(app, ["plan", "phi-4", "--gpu", "h10"])
    assert said.exit_code == 2


def test_the_command_prints_both_plans() -> None:
    ran = CliRunner().invoke(
        app,
        ["plan", "phi-4", "--gpus", "1920", "--tokens", "9.8e12", "--context", "4096",
         "--utilisation", "0.25"],
    )  # fmt: skip
    assert ran.exit_code == 0
    for part in ("9.8e+12 tokens", "1,920 × h100", "days", "GPU hours", "fits in 80"):
        assert part in ran.output
    served = CliRunner().invoke(app, ["plan", "phi-4-mini", "--context", "8192"])
    assert served.exit_code == 0 and "sequences fit" in served.output
