"""The family's figures against what was published, and the decoder against transformers."""

import json
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import phikit
from phikit.cli import app
from phikit.errors import PhikitError
from phikit.models import sheet
from phikit.models.architectures import architecture, build, config_json, part
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig, LongRope, to_hf
from phikit.models.family import MEMBERS, PHI_4_MINI, config, find, member
from phikit.models.sizes import sizes

# models of other kinds are held against their references in tests of their own
DENSE = [m.name for m in MEMBERS if type(m.config) is DecoderConfig]
# model → all parameters, parameters without the embeddings, as published
PUBLISHED = {
    "phi-4": (14_659_507_200, 13_631_902_720),
    "phi-4-reasoning": (14_659_507_200, 13_631_902_720),
    "phi-4-reasoning-plus": (14_659_507_200, 13_631_902_720),
    # phi-4's and 460.0 M for sight: no published figure, but transformers' modules add up to it
    # (tests/vision/test_reasoning_vision.py)
    "phi-4-reasoning-vision": (15_119_518_144, 14_091_913_664),
    "phi-4-mini": (3_836_021_760, 3_221_425_152),
    "phi-4-mini-reasoning": (3_836_021_760, 3_221_425_152),
    "phi-4-multimodal": (5_574_460_224, 4_959_863_616),
    "smollm2": (134_515_008, 106_203_456),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_module_has_exactly_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = build(config(name))
    counted = sum(p.numel() for p in model.parameters())
    size = sizes(config(name))
    assert (counted, counted - size.embedding) == PUBLISHED[name]
    assert size.parameters == counted
    matrices = [
        p for n, p in model.named_parameters()
        if re.fullmatch(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj(\.base_layer)?\.weight", n)
    ]  # fmt: skip
    assert size.matrices == sum(p.numel() for p in matrices)
    assert size.matrix_rows == sum(p.shape[0] for p in matrices)


@pytest.mark.parametrize("name", DENSE)
def test_tensor_names_and_shapes_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    hf = transformers.Phi3Config(**to_hf(config(name)))
    with torch.device("meta"):
        theirs = transformers.Phi3ForCausalLM(hf).state_dict()
        ours = Decoder(config(name)).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def reduced(full: DecoderConfig) -> DecoderConfig:
    """A member at a size for tests: its ratios and traits, few and narrow layers."""
    kv_heads, head_dim = 2, 32
    heads = kv_heads * (full.heads // full.kv_heads)
    long = full.long_rope
    if long is not None:
        long = LongRope(long.short_factor[::4], long.long_factor[::4], 64)
    return replace(
        full, vocab_size=199, hidden_size=heads * head_dim, intermediate_size=200, layers=2,
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, max_positions=2048, long_rope=long,
        bos_id=0, eos_ids=(1, 0), pad_id=0,
    )  # fmt: skip


@pytest.mark.parametrize("length", [1, 40, 100])
@pytest.mark.parametrize("name", ["phi-4", "phi-4-reasoning", "phi-4-mini", "smollm2"])
def test_logits_and_gradients_are_those_of_transformers(name: str, length: int) -> None:
    """100 positions are past the 64 at which the reduced phi-4-mini takes its long factors."""
    transformers = pytest.importorskip("transformers")
    shape = reduced(config(name))
    ours = Decoder(shape)
    ours.init_weights(torch.Generator().manual_seed(0))
    theirs = transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**to_hf(shape), attn_implementation="eager")
    )
    theirs.load_state_dict(ours.state_dict())
    # id 0 pads, and transformers keeps the gradient of its embedding at zero
    ids_BL = torch.randint(1, shape.vocab_size, (2, length), generator=torch.manual_seed(1))
    got, expected = ours(ids_BL), theirs(ids_BL, use_cache=False).logits
    assert (got - expected).norm() < 1e-5 * expected.norm()
    got.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    reference = dict(theirs.named_parameters())
    for label, one in ours.named_parameters():
        other = reference[label]
        assert (one.grad - other.grad).norm() <= 1e-4 * other.grad.norm() + 1e-6, label


@pytest.mark.parametrize("name", DENSE)
def test_config_json_brings_the_same_shape_back(name: str) -> None:
    shape = config(name)
    if name in DENSE:  # a Llama-shaped one is written as Phi3ForCausalLM
        shape = replace(shape, architecture="Phi3ForCausalLM")
    raw = json.loads(json.dumps(config_json(shape, "bfloat16")))
    assert part(architecture(shape.architecture).read)(raw, "config.json") == shape


def test_the_traits_that_overviews_get_wrong() -> None:
    phi4, mini = config("phi-4"), config("phi-4-mini")
    assert (phi4.hidden_size, phi4.heads, phi4.kv_heads) == (5120, 40, 10)
    assert (phi4.rope_theta, phi4.sliding_window, phi4.tied) == (250_000.0, None, False)
    assert config("phi-4-reasoning").rope_theta == 500_000.0
    assert mini.rotary_dim == 96
    assert mini.long_rope is not None
    assert len(mini.long_rope.long_factor) == len(mini.long_rope.short_factor) == 48


def test_names_aliases_and_repositories_are_understood() -> None:
    assert config("microsoft/phi-4-MINI-instruct") is PHI_4_MINI
    assert phikit.config("phi-4-mini-instruct") is PHI_4_MINI
    assert find("nobody") is None
    with pytest.raises(PhikitError, match=r"'phi-4-minni'.*\n.*'phi-4-mini'"):
        member("phi-4-minni")
    names = [n.lower() for m in MEMBERS for n in (m.name, m.repository, *m.aliases)]
    assert len(set(names)) == len(names)


def test_memory_follows_from_the_counts() -> None:
    size = sizes(config("phi-4"))
    assert size.weight_bytes("bf16") == 2 * 14_659_507_200  # 29.3 GB
    assert size.cache_bytes_per_token == 2 * 40 * 10 * 128 * 2
    ordered = [size.weight_bytes(p) for p in ("int4", "int8", "bf16", "f32")]
    assert ordered == sorted(ordered)
    assert 0.25 < size.weight_bytes("int4") / size.weight_bytes("bf16") < 0.33


def test_the_command_lists_and_draws() -> None:
    listed = CliRunner().invoke(app, ["models"])
    assert listed.exit_code == 0
    for one in MEMBERS:
        assert one.name in listed.output
    drawn = CliRunner().invoke(app, ["models", "phi-4-mini"]).output
    for words in ("3,836,021,760", "32 layers", "24 query, 8 key", "96 of 128", "LongRoPE"):
        assert words in drawn
    flash = CliRunner().invoke(app, ["models", "phi-4-mini-flash"]).output
    for words in ("3,852,562,944", "8 pairs", "1 pair", "7 pairs", "16 states of 5,120 channels"):
        assert words in flash
    seen = CliRunner().invoke(app, ["models", "phi-4-multimodal"]).output
    for words in ("5,574,460,224", "27 layers of 1,152", "24 blocks of 1,024", "rank 320"):
        assert words in seen
    for text in (drawn, flash):
        frame = [line for line in text.splitlines() if line and line[0] in "┌│└"]
        assert {len(line) for line in frame} == {max(map(len, frame))}
    rows = json.loads(CliRunner().invoke(app, ["models", "--json"]).output)
    assert rows == sheet.as_data()
    one = json.loads(CliRunner().invoke(app, ["models", "phi-4", "--json"]).output)
    assert one["parameters"] == 14_659_507_200
