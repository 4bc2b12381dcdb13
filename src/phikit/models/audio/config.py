"""The shape of phi-4-multimodal's audio encoder, as its `config.json` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phikit.errors import PhikitError

REDUCTION = 8  # frames of 10 ms that become one row: three convolutions of stride 2


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """A conformer on log-mel frames, and the width of the decoder that it speaks to.

    Source: Phi-4-Mini report (arXiv 2503.01743) §2.2.2; the published `config.json`.

    Attributes:
        mels: features of one frame of 10 ms.
        channels: of the convolutions that make one row of 8 frames.
        inner_size: inner width of the feed-forward halves.
        max_distance: relative positions from -max_distance to max_distance - 1 have a bias of
            their own; farther ones share the outermost.
        window: rows that attend to each other; a longer clip is cut into such windows.
        out_size: width of the decoder.
    """

    hidden_size: int = 1024
    inner_size: int = 1536
    layers: int = 24
    heads: int = 16
    kernel: int = 3
    mels: int = 80
    channels: int = 1024
    max_distance: int = 500
    window: int = 500
    out_size: int = 3072

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise PhikitError(f"width {self.hidden_size} is no multiple of {self.heads} heads")

    @property
    def mels_left(self) -> int:
        """Features of a row along frequency, after three halvings: 80 → 10."""
        return -(-self.mels // REDUCTION)

    @property
    def encoder_parameters(self) -> int:
        """Exact number, the 2 × `mels` constants of the input's normalisation not included."""
        d, f, c = self.hidden_size, self.inner_size, self.channels
        norm = 2 * d
        feed_forward = norm + 2 * f * (d + 1) + d * (f + 1)
        attention = norm + 4 * d * (d + 1)
        convolution = norm + 2 * d * (d + 1) + 2 * d + d * (self.kernel + 1) + 2 * d * (d + 1)
        block = 2 * feed_forward + attention + convolution + norm
        subsampling = c * 10 + 2 * (c * 10 + c * (c + 1)) + d * (c * self.mels_left + 1)
        return self.layers * block + subsampling + 2 * self.max_distance * self.heads

    @property
    def projector_parameters(self) -> int:
        """Of one of the two projectors."""
        return self.out_size * (self.hidden_size + 1) + self.out_size * (self.out_size + 1)

    @property
    def parameters(self) -> int:
        return self.encoder_parameters + 2 * self.projector_parameters


# What the architecture can be told and phikit builds in one way only: key → the value it must have.
_FIXED: Mapping[str, Any] = {
    "activation": "swish",
    "batch_norm": False,
    "bias_in_glu": True,
    "causal": True,
    "chunk_size": -1,
    "conv_activation": "swish",
    "conv_glu_type": "swish",
    "depthwise_multiplier": 1,
    "ext_pw_kernel_size": 1,
    "input_layer": "nemo_conv",
    "time_reduction": REDUCTION,
}


def audio_from_hf(raw: Mapping[str, Any], out_size: int, where: str) -> AudioConfig:
    """Reads `audio_processor.config` of a `config.json`.

    Raises:
        PhikitError: a key is missing, or says something that phikit does not build.
    """

    def need(key: str) -> Any:
        if key not in raw:
            raise PhikitError(f"{where}: the key audio_processor.config.{key} is missing")
        return raw[key]

    for key, value in _FIXED.items():
        if raw.get(key, value) != value:
            raise PhikitError(
                f"{where}: audio_processor.config.{key} is {raw[key]!r}; only {value!r} is built"
            )
    width = int(need("attention_dim"))
    for key in ("ext_pw_out_channel", "depthwise_seperable_out_channel"):
        if int(raw.get(key, width)) != width:
            raise PhikitError(
                f"{where}: audio_processor.config.{key} is {raw[key]}, not attention_dim {width}"
            )
    bias = need("relative_attention_bias_args")
    if bias.get("type") != "t5" or bias.get("t5_bias_symmetric", False):
        raise PhikitError(
            f"{where}: relative_attention_bias_args is {bias}; only the asymmetric t5 is built"
        )
    return AudioConfig(
        hidden_size=width,
        inner_size=int(need("linear_units")),
        layers=int(need("num_blocks")),
        heads=int(need("attention_heads")),
        kernel=int(raw.get("kernel_size", 3)),
        mels=int(need("input_size")),
        channels=int(need("nemo_conv_settings")["conv_channels"]),
        max_distance=int(bias["t5_bias_max_distance"]),
        out_size=out_size,
    )


def audio_to_hf(config: AudioConfig) -> dict[str, Any]:
    """What stands under `audio_processor.config` in the published file."""
    return {
        **_FIXED,
        "attention_dim": config.hidden_size,
        "attention_heads": config.heads,
        "cnn_layer_norm": True,  # published so; no such layer is in the weights
        "depthwise_seperable_out_channel": config.hidden_size,
        "dropout_rate": 0.0,
        "encoder_embedding_config": {"input_size": config.mels},
        "ext_pw_out_channel": config.hidden_size,
        "input_size": config.mels,
        "kernel_size": config.kernel,
        "left_chunk": 18,  # of streaming masks, which chunk_size -1 switches off
        "linear_units": config.inner_size,
        "nemo_conv_settings": {"conv_channels": config.channels},
        "num_blocks": config.layers,
        "relative_attention_bias_args": {"t5_bias_max_distance": config.max_distance, "type": "t5"},
    }
