"""A small phi-4-multimodal, and transformers' model with the same weights and the same inputs."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phikit.models import lora
from phikit.models.audio.config import AudioConfig
from phikit.models.audio.encoder import rows_of
from phikit.models.decoder_config import LongRope
from phikit.models.lora_spec import LoraSpec
from phikit.models.multimodal.config import SPEECH_LORA, VISION_LORA, Phi4MMConfig
from phikit.models.multimodal.media import Media
from phikit.models.multimodal.model import Phi4MM
from phikit.models.vision.config import SIGLIP_448

AUDIO = (
    (r"feed_forward_(in|out)\.net\.0\.linear", r"feed_forward_\1.gate_up_proj"),
    (r"feed_forward_(in|out)\.net\.2", r"feed_forward_\1.down_proj"),
    (r"self_attn\.linear_(q|k|v)", r"self_attn.\1_proj"),
    (r"self_attn\.linear_out", "self_attn.o_proj"),
    (r"audio_projection\.speech\.0", "up_proj_for_speech"),
    (r"audio_projection\.speech\.2", "down_proj_for_speech"),
    (r"audio_projection\.vision\.0", "up_proj_for_vision_speech"),
    (r"audio_projection\.vision\.2", "down_proj_for_vision_speech"),
)
IMAGE = (
    (r"image_embed\.img_projection\.0", "image_embed.img_projection_up"),
    (r"image_embed\.img_projection\.2", "image_embed.img_projection_down"),
    (r"image_embed\.glb_GN", "image_embed.global_img_feature_extensor"),
    (r"image_embed\.sub_GN", "image_embed.sub_img_feature_extensor"),
)


def their_name(name: str) -> str:
    for pattern, replacement in (*AUDIO, *IMAGE):
        name = re.sub(pattern, replacement, name)
    return name


def their_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {their_name(name): tensor for name, tensor in tensors.items()}


def small_config(**changes: Any) -> Phi4MMConfig:
    """phi-4-multimodal in every trait, but small; LongRoPE switches after 200 positions."""
    shape: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 48, "intermediate_size": 56, "layers": 3, "heads": 6,
        "kv_heads": 2, "head_dim": 8, "max_positions": 400, "rope_fraction": 0.75, "tied": True,
        "long_rope": LongRope((1.0, 1.2, 1.4), (1.3, 2.2, 5.0), original_max_positions=200),
        "eos_ids": (7, 8), "bos_id": 8, "pad_id": 0, "image_id": 9, "audio_id": 10,
        "vision": replace(
            SIGLIP_448, hidden_size=36, intermediate_size=44, layers=3, heads=3, table_side=4
        ),
        "audio": AudioConfig(
            hidden_size=32, inner_size=48, layers=2, heads=4, channels=16, out_size=48,
            max_distance=30,
        ),
        "vision_lora": LoraSpec(4, 8, VISION_LORA.layers),
        "speech_lora": LoraSpec(5, 10, SPEECH_LORA.layers, dropout=0.01),
    }  # fmt: skip
    return Phi4MMConfig(**{**shape, **changes})


def small_model(config: Phi4MMConfig | None = None, seed: int = 0) -> Phi4MM:
    """Random weights, far from those of a beginning: no part could be forgotten unseen."""
    model = Phi4MM(config or small_config())
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name or "global_" in name:
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dim() > 1 and name != "lm_head.weight":
                fan_in = tensor[0].numel()
                tensor.normal_(0, 0.5 if "embed" in name else fan_in**-0.5, generator=generator)
            else:
                tensor.normal_(0, 0.2, generator=generator)
        for name, tensor in model.state_dict().items():
            if ".img_processor." in name or ".encoders." in name or "lora_B" in name:
                tensor.mul_(0.6)
    return model.eval()


def reference_model(model: Phi4MM, adapter: str | None) -> Any:
    """transformers' model with the same weights, one adapter merged: it has no adapters itself."""
    transformers = pytest.importorskip("transformers")
    config = reference_config(model.config)
    theirs = transformers.Phi4MultimodalForCausalLM(config).eval()
    tensors = their_names({
        f"model.{name}": tensor for name, tensor in lora.plain_tensors(model.model, adapter)
    })  # fmt: skip
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    theirs.tie_weights()
    theirs.generation_config.eos_token_id = None
    return theirs


def reference_config(config: Phi4MMConfig) -> Any:
    import transformers

    c, v, a = config, config.vision, config.audio
    assert c.long_rope is not None
    vision = transformers.Phi4MultimodalVisionConfig(
        hidden_size=v.hidden_size, intermediate_size=v.intermediate_size,
        num_hidden_layers=v.layers, num_attention_heads=v.heads, image_size=c.crop,
        crop_size=c.crop, patch_size=v.patch_size, image_token_id=c.image_id,
    )  # fmt: skip
    audio = transformers.Phi4MultimodalAudioConfig(
        hidden_size=a.hidden_size, intermediate_size=a.inner_size, num_blocks=a.layers,
        num_attention_heads=a.heads, nemo_conv_channels=a.channels,
        bias_max_distance=a.max_distance, ext_pw_out_channel=a.hidden_size,
        depthwise_separable_out_channel=a.hidden_size, audio_token_id=c.audio_id,
    )  # fmt: skip
    return transformers.Phi4MultimodalConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
        num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
        max_position_embeddings=c.max_positions,
        original_max_position_embeddings=c.long_rope.original_max_positions,
        partial_rotary_factor=c.rope_fraction, tie_word_embeddings=True, bos_token_id=c.bos_id,
        eos_token_id=list(c.eos_ids), pad_token_id=c.pad_id, rms_norm_eps=c.norm_eps,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": c.rope_theta,
            "partial_rotary_factor": c.rope_fraction,
            "original_max_position_embeddings": c.long_rope.original_max_positions,
            "short_factor": list(c.long_rope.short_factor),
            "long_factor": list(c.long_rope.long_factor),
        },
        vision_config=vision, audio_config=audio, attn_implementation="eager",
    )  # fmt: skip


def their_images(media: Media) -> dict[str, Tensor]:
    """The arguments that transformers' model takes for pictures, all padded to the same crops."""
    assert media.crops_NCSS is not None and media.valid_NPP is not None
    counts = [rows * columns + 1 for rows, columns in media.grids]
    crops, valid = media.crops_NCSS.split(counts), media.valid_NPP.split(counts)
    side = media.crops_NCSS.shape[-1]
    filled = torch.ones_like(media.valid_NPP[:1])
    most = max(counts)
    return {
        "image_pixel_values": torch.stack(
            [F.pad(c, (0, 0, 0, 0, 0, 0, 0, most - len(c))) for c in crops]
        ),
        "image_attention_mask": torch.stack(
            [torch.cat([v, filled.expand(most - len(v), -1, -1)]) for v in valid]
        ),
        "image_sizes": torch.tensor(
            [[rows * side, columns * side] for rows, columns in media.grids]
        ),
    }


def their_clips(media: Media) -> dict[str, Tensor]:
    """The arguments for clips of one length: without a mask, which it would apply wrongly."""
    return {
        "audio_input_features": torch.stack(media.clips),
        "audio_embed_sizes": torch.tensor([rows_of(len(clip)) for clip in media.clips]),
    }
