"""Every member of the family as literal data, and the way from a name to it.

The figures are those of the published configurations and reports; what follows from them (parameter
counts, memory) is computed in `sizes.py`, never typed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from phikit.errors import PhikitError, did_you_mean
from phikit.models.decoder_config import DecoderConfig, LongRope
from phikit.models.flash.config import PHI_4_MINI_FLASH, FlashConfig
from phikit.models.multimodal.config import Phi4MMConfig
from phikit.models.vision.reasoning_config import ReasoningVisionConfig


@dataclass(frozen=True, slots=True)
class Member:
    """One model of the family.

    Attributes:
        name: how phikit calls it.
        repository: where its weights are published, as owner/name.
        about: what it is for, in a few words.
        config: its shape.
        aliases: other names that are understood.
    """

    name: str
    repository: str
    about: str
    config: DecoderConfig | FlashConfig
    aliases: tuple[str, ...] = ()


# Phi-4 Technical Report (arXiv 2412.08905) and the published config.json. The base of RoPE was
# raised to 250,000 in midtraining only; attention is full, unlike phi-3-medium's.
PHI_4 = DecoderConfig(
    vocab_size=100_352,
    hidden_size=5120,
    intermediate_size=17_920,
    layers=40,
    heads=40,
    kv_heads=10,
    head_dim=128,
    max_positions=16_384,
    rope_theta=250_000.0,
    bos_id=100_257,
    eos_ids=(100_265, 100_257),
    pad_id=100_349,
)

# Phi-4-reasoning report (arXiv 2504.21318): the base of RoPE doubled, 32K positions.
PHI_4_REASONING = PHI_4.with_context(32_768, 500_000.0)

# Published config.json: phi-4-reasoning's decoder, which ends its answers with <|im_end|> alone,
# and SigLIP 2 before it; the tower and the numbers of patches are the configuration's defaults.
PHI_4_REASONING_VISION = ReasoningVisionConfig(
    **{
        field.name: getattr(replace(PHI_4_REASONING, eos_ids=(100_265,)), field.name)
        for field in fields(DecoderConfig)
        if field.name != "architecture"
    }
)

# One divisor for each of the 48 rotated pairs: 0.75 × 128 / 2. Published config.json.
# fmt: off
_MINI_LONG_FACTOR = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845,
    5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158,
    11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105,
    25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71,
    32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on

# Phi-4-Mini report (arXiv 2503.01743) and the published config.json. Its sliding window, 262,144,
# is longer than any sequence, so it masks nothing.
PHI_4_MINI = DecoderConfig(
    vocab_size=200_064,
    hidden_size=3072,
    intermediate_size=8192,
    layers=32,
    heads=24,
    kv_heads=8,
    head_dim=128,
    max_positions=131_072,
    rope_theta=10_000.0,
    rope_fraction=0.75,
    long_rope=LongRope(
        short_factor=(1.0,) * 48,
        long_factor=_MINI_LONG_FACTOR,
        original_max_positions=4096,
    ),
    sliding_window=262_144,
    tied=True,
    bos_id=199_999,
    eos_ids=(200_020, 199_999),
    pad_id=199_999,
)

# Phi-4-Mini report (arXiv 2503.01743) and the published config.json: phi-4-mini, and beside its
# matrices two adapters. What sees and hears has the published sizes as its defaults.
PHI_4_MULTIMODAL = Phi4MMConfig(
    **{f.name: getattr(PHI_4_MINI, f.name) for f in fields(PHI_4_MINI) if f.name != "architecture"}
)

# SmolLM2-135M-Instruct (Apache-2.0): no Phi, but shaped so much like one that the same decoder
# runs it. A real pretrained model for a laptop.
SMOLLM2 = DecoderConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    max_positions=8192,
    rope_theta=100_000.0,
    tied=True,
    bos_id=1,
    eos_ids=(2,),
    pad_id=2,
    architecture="LlamaForCausalLM",
)

MEMBERS = (
    Member("phi-4", "microsoft/phi-4", "general, strongest in mathematics and science", PHI_4),
    Member(
        "phi-4-reasoning",
        "microsoft/Phi-4-reasoning",
        "thinks before it answers; phi-4 after SFT on long solutions",
        PHI_4_REASONING,
    ),
    Member(
        "phi-4-reasoning-plus",
        "microsoft/Phi-4-reasoning-plus",
        "phi-4-reasoning after GRPO on mathematics",
        PHI_4_REASONING,
    ),
    Member(
        "phi-4-reasoning-vision",
        "microsoft/Phi-4-reasoning-vision-15B",
        "phi-4-reasoning that also sees pictures, and thinks where it must",
        PHI_4_REASONING_VISION,
        aliases=("phi-4-reasoning-vision-15b",),
    ),
    Member(
        "phi-4-mini",
        "microsoft/Phi-4-mini-instruct",
        "general, small, multilingual, calls tools",
        PHI_4_MINI,
        aliases=("phi-4-mini-instruct",),
    ),
    Member(
        "phi-4-mini-reasoning",
        "microsoft/Phi-4-mini-reasoning",
        "phi-4-mini that thinks: mathematics",
        PHI_4_MINI,
    ),
    Member(
        "phi-4-mini-flash-reasoning",
        "microsoft/Phi-4-mini-flash-reasoning",
        "thinks long and cheaply: most of its memory does not grow; mathematics",
        PHI_4_MINI_FLASH,
        aliases=("phi-4-mini-flash",),
    ),
    Member(
        "phi-4-multimodal",
        "microsoft/Phi-4-multimodal-instruct",
        "phi-4-mini that also sees pictures and hears speech",
        PHI_4_MULTIMODAL,
        aliases=("phi-4-multimodal-instruct",),
    ),
    Member(
        "smollm2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "not a Phi: a small Llama-shaped model that runs anywhere",
        SMOLLM2,
        aliases=("smollm2-135m", "smollm2-135m-instruct"),
    ),
)


def _names() -> Mapping[str, Member]:
    """Every name that is understood, in lower case, with the member it means."""
    return {
        name.lower(): member
        for member in MEMBERS
        for name in (member.name, member.repository, *member.aliases)
    }


def find(name: str) -> Member | None:
    """The member of that name, alias or repository (in any case), or None."""
    return _names().get(name.lower())


def member(name: str) -> Member:
    """The member of that name, alias or repository, in any case.

    Raises:
        PhikitError: there is none; names the nearest.
    """
    found = find(name)
    if found is None:
        raise PhikitError(
            f"no member of the family is called {name!r}",
            did_you_mean(name.lower(), [m.name for m in MEMBERS]),
        )
    return found


def config(name: str) -> DecoderConfig | FlashConfig:
    """The shape of a member's decoder: `config("phi-4-mini")`.

    Raises:
        PhikitError: as `member`.
    """
    return member(name).config
