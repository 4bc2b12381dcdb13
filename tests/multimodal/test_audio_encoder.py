"""The audio encoder against transformers, its windows and batches, its published names."""

import json

import pytest
import torch
import torch.nn.functional as F
from phi4mm_reference import their_name, their_names

from phikit.errors import PhikitError
from phikit.models.audio.config import AudioConfig, audio_from_hf, audio_to_hf
from phikit.models.audio.encoder import AudioEmbedding, Encoder, rows_of

SMALL = AudioConfig(
    hidden_size=32, inner_size=48, layers=3, heads=4, channels=16, max_distance=30, out_size=40
)


def make(config: AudioConfig = SMALL) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if "norm" in name or "global_" in name:  # ones and zeros would hide a forgotten one
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif ".b1" in name or ".b2" in name or "bias_values" in name:
                tensor.normal_(0, 1, generator=generator)
    return encoder


def reference(encoder: Encoder):
    """transformers' encoder with the same weights."""
    transformers = pytest.importorskip("transformers")
    c = encoder.config
    config = transformers.Phi4MultimodalAudioConfig(
        hidden_size=c.hidden_size, intermediate_size=c.inner_size, num_blocks=c.layers,
        num_attention_heads=c.heads, nemo_conv_channels=c.channels, input_size=c.mels,
        bias_max_distance=c.max_distance, ext_pw_out_channel=c.hidden_size,
        depthwise_separable_out_channel=c.hidden_size, kernel_size=c.kernel,
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = transformers.Phi4MultimodalAudioModel(config).eval()
    theirs.load_state_dict(their_names(encoder.state_dict()))
    return theirs


def frames(count: int, seed: int = 2, mels: int = 80) -> torch.Tensor:
    return 3 * torch.randn(count, mels, generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, by: float = 1e-4) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= by * float(b.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 203, 1000])
def test_one_clip(count: int) -> None:
    encoder = make()
    clip = frames(count)
    (ours,) = encoder([clip])
    assert len(ours) == rows_of(count)
    assert close(ours, reference(encoder)(clip[None], None)[0])


@torch.no_grad()
@pytest.mark.parametrize("count", [4000, 4001, 8000, 8400])
def test_longer_than_one_window(count: int) -> None:
    """500 rows of 8 frames to a window; the zero rows that fill the last one are attended to."""
    encoder = make()
    clip = frames(count)
    (ours,) = encoder([clip])
    assert close(ours, reference(encoder)(clip[None], None)[0])


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    encoder = make()
    clips = [frames(n, seed=n) for n in (9, 4500, 160, 1, 800, 161)]
    together = encoder(clips)
    for clip, ours in zip(clips, together, strict=True):
        assert close(ours, encoder([clip])[0], 1e-5)
        assert close(ours, reference(encoder)(clip[None], None)[0])


@torch.no_grad()
def test_more_windows_than_go_through_at_once() -> None:
    encoder = make(AudioConfig(**{**vars_of(SMALL), "layers": 1, "window": 4}))
    clips = [frames(n, seed=n) for n in range(30, 330, 30)]
    for clip, ours in zip(clips, encoder(clips), strict=True):
        assert close(ours, encoder([clip])[0], 1e-5)


def vars_of(config: AudioConfig) -> dict[str, int]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@torch.no_grad()
def test_subsampling_in_pieces_is_subsampling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from phikit.models.audio import encoder as module

    embed = make().embed
    clip = frames(219)
    whole = embed(clip)
    monkeypatch.setattr(module, "_PIECE", 5)
    assert close(embed(clip), whole, 1e-6)


def test_gradients() -> None:
    encoder = make()
    theirs = reference(encoder)
    clip = frames(100)
    weight = torch.randn(13, 32, generator=torch.Generator().manual_seed(3))
    (encoder([clip])[0] * weight).sum().backward()
    (theirs(clip[None], None)[0] * weight).sum().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, parameter in encoder.named_parameters():
        other = expected[their_name(name)]
        # a bias on all keys shifts a row's scores alike: its gradient is zero but for rounding
        scale = other.norm() if not name.endswith("linear_k.bias") else 1.0
        assert (parameter.grad - other).norm() <= 1e-4 * scale, name
        compared += 1
    assert compared == len(expected)


@torch.no_grad()
def test_projectors() -> None:
    torch.manual_seed(0)
    embedding = AudioEmbedding(SMALL).eval()
    clips = [frames(50), frames(20)]
    speech, vision = embedding(clips, ["speech", "vision"])
    assert (speech.shape, vision.shape) == ((7, 40), (3, 40))
    rows = embedding.encoder(clips)
    for out, row, mode in ((speech, rows[0], "speech"), (vision, rows[1], "vision")):
        up, _, down = embedding.audio_projection[mode]
        assert close(out, down(F.gelu(up(row))), 1e-5)


@torch.no_grad()
def test_half_precision_stays_near() -> None:
    encoder = make()
    clip = frames(400)
    (exact,) = encoder([clip])
    (rough,) = encoder.bfloat16()([clip.bfloat16()])
    assert float((rough.float() - exact).norm()) < 0.03 * float(exact.norm())


def test_published_names_and_counts() -> None:
    """887 tensors; 441.2M parameters in the encoder and 12.6M in each projector."""
    with torch.device("meta"):
        embedding = AudioEmbedding(AudioConfig())
    state = {name: tuple(t.shape) for name, t in embedding.state_dict().items()}
    assert len(state) == 887
    for name, shape in {
        "encoder.encoder_embedding.global_mean": (80,),
        "encoder.embed.conv.0.weight": (1024, 1, 3, 3),
        "encoder.embed.conv.2.weight": (1024, 1, 3, 3),
        "encoder.embed.conv.3.weight": (1024, 1024, 1, 1),
        "encoder.embed.conv.6.bias": (1024,),
        "encoder.embed.out.weight": (1024, 10_240),
        "encoder.relative_attention_bias_layer.bias_values.weight": (1000, 16),
        "encoder.encoders.0.feed_forward_in.net.0.linear.weight": (3072, 1024),
        "encoder.encoders.23.feed_forward_out.net.2.weight": (1024, 1536),
        "encoder.encoders.5.self_attn.linear_out.bias": (1024,),
        "encoder.encoders.5.conv.glu.ext_pw_conv_1d.weight": (2048, 1024, 1),
        "encoder.encoders.5.conv.glu.b1": (1, 1024, 1),
        "encoder.encoders.5.conv.dw_sep_conv_1d.dw_conv.weight": (1024, 1, 3),
        "encoder.encoders.5.conv.dw_sep_conv_1d.pw_conv.weight": (1024, 1024, 1),
        "encoder.encoders.5.conv.ext_pw_conv_1d.weight": (1024, 1024, 1),
        "encoder.encoders.5.layer_norm_att.weight": (1024,),
        "audio_projection.speech.0.weight": (3072, 1024),
        "audio_projection.vision.2.weight": (3072, 3072),
    }.items():
        assert state[name] == shape
    counted = sum(p.numel() for p in embedding.parameters())
    assert counted == AudioConfig().parameters == 466_416_416 - 160  # 160: the two buffers
    assert round(AudioConfig().encoder_parameters / 1e6, 1) == 441.2
    assert round(AudioConfig().projector_parameters / 1e6, 1) == 12.6


def test_the_config_comes_back() -> None:
    raw = json.loads(json.dumps(audio_to_hf(SMALL)))
    assert audio_from_hf(raw, 40, "x") == SMALL
    with pytest.raises(PhikitError, match=r"batch_norm is True; only False"):
        audio_from_hf({**raw, "batch_norm": True}, 40, "x")
    with pytest.raises(PhikitError, match="linear_units is missing"):
        audio_from_hf({k: v for k, v in raw.items() if k != "linear_units"}, 40, "x")


def test_wrong_frames_are_refused() -> None:
    with pytest.raises(PhikitError, match=r"clip 2 has the shape \(5, 79\)"):
        make()([frames(5), frames(5, mels=79)])
    with pytest.raises(PhikitError, match=r"clip 1 has the shape \(0, 80\)"):
        make()([frames(0)])
