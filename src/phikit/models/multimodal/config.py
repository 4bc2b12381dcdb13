"""The shape of phi-4-multimodal, read from and written to its published `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from phikit.errors import PhikitError
from phikit.models import decoder_config
from phikit.models.audio.config import AudioConfig, audio_from_hf, audio_to_hf
from phikit.models.decoder_config import DecoderConfig
from phikit.models.lora_spec import LoraSpec
from phikit.models.vision.config import SIGLIP_448, VisionConfig

ARCHITECTURE = "Phi4MMForCausalLM"
_PUBLISHED_IDS = {"image_token_id": 200_010, "audio_token_id": 200_011}
_END_OF_TEXT, _END = 199_999, 200_020  # <|endoftext|>, <|end|>

# Both are on every matrix of every layer; the published file says so in two ways.
VISION_LORA = LoraSpec(
    rank=256,
    alpha=512,
    layers=r"layers.*((self_attn\.(qkv_proj|o_proj))|(mlp\.(gate_up|down)_proj))",
)
SPEECH_LORA = LoraSpec(
    rank=320,
    alpha=640,
    layers=r"((layers.*self_attn\.(qkv|o)_proj)|(layers.*mlp\.(gate_up|down)_proj))",
    dropout=0.01,
)
CONFORMER = AudioConfig()


@dataclass(frozen=True)
class Phi4MMConfig(DecoderConfig):
    """A dense decoder that also sees and hears, with an adapter for either.

    Attributes:
        image_id, audio_id: the tokens that stand, repeated, for the rows of a picture or a clip.
    """

    architecture: str = ARCHITECTURE
    vision: VisionConfig = SIGLIP_448
    audio: AudioConfig = CONFORMER
    vision_lora: LoraSpec = VISION_LORA
    speech_lora: LoraSpec = SPEECH_LORA
    image_id: int = _PUBLISHED_IDS["image_token_id"]
    audio_id: int = _PUBLISHED_IDS["audio_token_id"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.audio.out_size != self.hidden_size:
            raise PhikitError(
                f"the audio projectors give {self.audio.out_size} values, but the decoder's width "
                f"is {self.hidden_size}"
            )
        if self.sliding_window and self.sliding_window < self.max_positions:
            raise PhikitError(
                f"sliding_window {self.sliding_window} is shorter than the context of "
                f"{self.max_positions}; phi-4-multimodal attends to all of it"
            )

    @property
    def crop(self) -> int:
        """Side of a crop, in pixels."""
        return self.vision.table_side * self.vision.patch_size

    @property
    def decoder_parameters(self) -> int:
        """Without adapters, sight and hearing: phi-4-mini's."""
        return super().parameters

    @property
    def adapter_parameters(self) -> dict[str, int]:
        """Of each adapter: rank × (inputs + outputs) for each matrix of the layers."""
        d, f, k = self.hidden_size, self.intermediate_size, self.head_dim
        qkv, o = d + (self.heads + 2 * self.kv_heads) * k, self.heads * k + d
        sides = self.layers * (qkv + o + (d + 2 * f) + (f + d))
        return {"vision": self.vision_lora.rank * sides, "speech": self.speech_lora.rank * sides}

    @property
    def image_parameters(self) -> int:
        """Tower, projector, and the two separators."""
        d, out = self.vision.hidden_size, self.hidden_size
        return self.vision.parameters + out * (d + 1) + out * (out + 1) + 2 * d

    @property
    def parameters(self) -> int:
        return (
            self.decoder_parameters
            + self.image_parameters
            + self.audio.parameters
            + sum(self.adapter_parameters.values())
        )

    def flops_per_token(self, context: int) -> float:
        """Of the decoder for a token of text, without an adapter."""
        matrices = self.decoder_parameters - self.vocab_size * self.hidden_size * (not self.tied)
        return 2.0 * matrices + 4.0 * self.layers * self.heads * self.head_dim * context


def from_hf(raw: Mapping[str, Any], where: str = "config.json") -> Phi4MMConfig:
    """Reads the published `config.json`.

    It says nothing of the vision tower, which the published code builds in one size, nor of the
    placeholder tokens. Where phikit has written others, they stand under `vision_config`,
    `image_token_id` and `audio_token_id`.

    Raises:
        PhikitError: a needed key is missing, or says something that phikit does not build.
    """

    def need(key: str, among: Mapping[str, Any] = raw, prefix: str = "") -> Any:
        if key not in among:
            raise PhikitError(f"{where}: the key {prefix + key!r} is missing")
        return among[key]

    decoder = decoder_config.from_hf({**raw, "architectures": ["Phi3ForCausalLM"]}, where)
    shape = {field.name: getattr(decoder, field.name) for field in fields(DecoderConfig)}
    if decoder.eos_ids == (_END_OF_TEXT,):
        # the published file leaves out what ends a turn; generation_config.json beside it does not
        shape["eos_ids"] = (_END, _END_OF_TEXT)
    shape["architecture"] = ARCHITECTURE
    _check_embedding(need("embd_layer"), where)
    vision = _vision_from_hf(raw.get("vision_config"), where)
    crop = need("image_embd_layer", raw["embd_layer"], "embd_layer.").get("crop_size", 448)
    config = Phi4MMConfig(
        **shape,
        vision=vision,
        audio=audio_from_hf(
            need("config", need("audio_processor"), "audio_processor."), decoder.hidden_size, where
        ),
        vision_lora=_lora_from_hf(need("vision_lora"), f"{where}: vision_lora"),
        speech_lora=_lora_from_hf(need("speech_lora"), f"{where}: speech_lora"),
        image_id=int(raw.get("image_token_id", _PUBLISHED_IDS["image_token_id"])),
        audio_id=int(raw.get("audio_token_id", _PUBLISHED_IDS["audio_token_id"])),
    )
    if crop != config.crop:
        raise PhikitError(
            f"{where}: embd_layer.image_embd_layer.crop_size is {crop}, but the vision tower's "
            f"{vision.table_side} patches of {vision.patch_size} pixels make {config.crop}"
        )
    return config


def to_hf(config: Phi4MMConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The `config.json` of the published model's form."""
    raw = {
        **decoder_config.to_hf(config, dtype),
        "architectures": [ARCHITECTURE],
        "model_type": "phi4mm",
        "audio_processor": {"config": audio_to_hf(config.audio), "name": "cascades"},
        "embd_layer": {
            "audio_embd_layer": {
                "compression_rate": 8,
                "downsample_rate": 1,
                "embedding_cls": "audio",
                "projection_cls": "mlp",
                "use_conv_downsample": False,
                "use_qformer": False,
            },
            "embedding_cls": "image_audio",
            "image_embd_layer": {
                "crop_size": config.crop,
                "embedding_cls": "tune_image",
                "hd_transform_order": "sub_glb",
                "image_token_compression_cls": "avg_pool_2d",
                "projection_cls": "mlp",
                "use_hd_transform": True,
                "with_learnable_separator": True,
            },
        },
        "img_processor": None,
        "vision_lora": _lora_to_hf(config.vision_lora),
        "speech_lora": _lora_to_hf(config.speech_lora),
    }
    raw |= {key: value for key, value in _ids(config).items() if value != _PUBLISHED_IDS[key]}
    if config.vision != SIGLIP_448:
        raw["vision_config"] = {
            "hidden_size": config.vision.hidden_size,
            "intermediate_size": config.vision.intermediate_size,
            "num_hidden_layers": config.vision.layers,
            "num_attention_heads": config.vision.heads,
            "patch_size": config.vision.patch_size,
            "image_size": config.crop,
            "layer_norm_eps": config.vision.norm_eps,
            "feature_layer": config.vision.feature_layer,
        }
    return raw


def _ids(config: Phi4MMConfig) -> dict[str, int]:
    return {"image_token_id": config.image_id, "audio_token_id": config.audio_id}


#: parts of `embd_layer` that phikit builds in one way only
_BUILT = {
    "image_embd_layer": {
        "hd_transform_order": "sub_glb",
        "image_token_compression_cls": "avg_pool_2d",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "audio_embd_layer": {
        "downsample_rate": 1,
        "projection_cls": "mlp",
        "use_conv_downsample": False,
        "use_qformer": False,
    },
}


def _check_embedding(raw: Mapping[str, Any], where: str) -> None:
    for part, built in _BUILT.items():
        for key, value in built.items():
            said = raw.get(part, {}).get(key, value)
            if said != value:
                raise PhikitError(
                    f"{where}: embd_layer.{part}.{key} is {said!r}; only {value!r} is built"
                )


def _vision_from_hf(raw: Mapping[str, Any] | None, where: str) -> VisionConfig:
    if raw is None:
        return SIGLIP_448
    try:
        return replace(
            SIGLIP_448,
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            layers=int(raw["num_hidden_layers"]),
            heads=int(raw["num_attention_heads"]),
            patch_size=int(raw["patch_size"]),
            table_side=int(raw["image_size"]) // int(raw["patch_size"]),
            norm_eps=float(raw.get("layer_norm_eps", SIGLIP_448.norm_eps)),
            feature_layer=int(raw.get("feature_layer", SIGLIP_448.feature_layer)),
        )
    except KeyError as e:
        raise PhikitError(f"{where}: the key vision_config.{e.args[0]} is missing") from e


def _lora_from_hf(raw: Mapping[str, Any], where: str) -> LoraSpec:
    try:
        return LoraSpec(
            rank=int(raw["r"]),
            alpha=float(raw["lora_alpha"]),
            layers=str(raw["layer"]),
            dropout=float(raw.get("dp", 0.0)),
        )
    except KeyError as e:
        raise PhikitError(f"{where}.{e.args[0]} is missing") from e


def _lora_to_hf(spec: LoraSpec) -> dict[str, Any]:
    alpha = int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha
    return {"dp": spec.dropout, "layer": spec.layers, "lora_alpha": alpha, "r": spec.rank}
