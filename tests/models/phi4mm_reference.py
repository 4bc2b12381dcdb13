"""Names of transformers' phi4_multimodal for the published ones, to give it the same weights."""

import re
from collections.abc import Mapping

from torch import Tensor

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
