"""The published configuration read, others refused, all written back."""

import copy
import json
from typing import Any

import pytest
from phi4mm_reference import small_config
from published_config import PUBLISHED

from phikit.errors import PhikitError
from phikit.models.family import PHI_4_MULTIMODAL
from phikit.models.multimodal.config import from_hf, to_hf
from phikit.models.multimodal.modes import InputMode


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(PUBLISHED)
    *parents, last = path.split(".")
    place = raw
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return raw


def test_the_published_file_is_the_member() -> None:
    assert from_hf(PUBLISHED) == PHI_4_MULTIMODAL
    assert PHI_4_MULTIMODAL.eos_ids == (200_020, 199_999)
    assert PHI_4_MULTIMODAL.crop == 448


def test_what_is_written_says_what_was_published() -> None:
    """Every published key that a model is built from, with the same value."""
    written = json.loads(json.dumps(to_hf(PHI_4_MULTIMODAL)))
    ours = {"activation_checkpointing", "enable_gradient_checkpointing", "full_attn_mod"}
    ours |= {"interpolate_factor", "lm_head_bias", "mlp_bias", "eos_token_id"}

    def compare(published: dict[str, Any], other: dict[str, Any], where: str) -> None:
        for key, value in published.items():
            if key in ours:
                continue
            assert key in other, where + key
            if isinstance(value, dict):
                compare(value, other[key], f"{where}{key}.")
            else:
                assert other[key] == value, where + key

    compare(PUBLISHED, written, "")
    assert from_hf(written) == PHI_4_MULTIMODAL


def test_another_size_comes_back() -> None:
    config = small_config()
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("audio_processor", None, "'audio_processor' is missing"),
        ("audio_processor.config.linear_units", None, "config.linear_units is missing"),
        ("audio_processor.config.causal", False, "config.causal is False; only True is built"),
        ("embd_layer.image_embd_layer.use_hd_transform", False, "use_hd_transform is False"),
        ("embd_layer.audio_embd_layer.use_qformer", True, "use_qformer is True; only False"),
        ("embd_layer.image_embd_layer.crop_size", 336, "crop_size is 336.* make 448"),
        ("vision_lora", None, "'vision_lora' is missing"),
        ("speech_lora.r", None, r"speech_lora\.r is missing"),
        ("speech_lora.r", 0, "rank of an adapter is 0"),
        ("sliding_window", 512, "sliding_window 512 is shorter"),
        ("hidden_size", None, "'hidden_size' is missing"),
    ],
)
def test_what_is_not_built_is_refused(path: str, value: Any, says: str) -> None:
    with pytest.raises(PhikitError, match=says):
        from_hf(changed(path, value), "config.json")


def test_modes() -> None:
    """Numbers, adapters and projectors as in the published code."""
    table = [(m.value, m.adapter, m.projector) for m in InputMode]
    assert table == [
        (0, None, "speech"), (1, "vision", "vision"), (2, "speech", "speech"),
        (3, "vision", "vision"),
    ]  # fmt: skip
    assert InputMode.of(images=True, sounds=True) is InputMode.VISION_SPEECH
    assert InputMode.of(images=False, sounds=True) is InputMode.SPEECH
