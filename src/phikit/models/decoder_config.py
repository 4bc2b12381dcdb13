"""The shape of a dense Phi decoder, read from and written to a Hugging Face `config.json`.

The family's figures are literal data in `family.py`; this file says what the fields mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from phikit.errors import PhikitError
from phikit.models.hf_keys import end_ids, shape_keys, shape_of


@dataclass(frozen=True, slots=True)
class LongRope:
    """LongRoPE: one frequency divisor per rotated pair, for short and for long sequences.

    Source: Ding et al. 2024 (arXiv 2402.13753); values in Phi-4-mini's config.json.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A pre-norm decoder with RMSNorm, GQA, RoPE and SwiGLU, without biases (`Phi3ForCausalLM`).

    Attributes:
        rope_fraction: the part of each head that is rotated (phi-4-mini: 0.75).
        sliding_window: attend to this many latest positions, itself included; None for all.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0
    long_rope: LongRope | None = None
    sliding_window: int | None = None
    norm_eps: float = 1e-5
    tied: bool = False
    init_std: float = 0.02
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    architecture: str = "Phi3ForCausalLM"

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise PhikitError(
                f"{self.heads} query heads cannot share {self.kv_heads} key-value heads evenly",
                "choose heads as a multiple of kv_heads",
            )
        if self.rotary_dim % 2:
            raise PhikitError(
                f"head_dim {self.head_dim} × rope_fraction {self.rope_fraction} gives "
                f"{self.rotary_dim} rotated dimensions; it must be even"
            )

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.rope_fraction)

    @property
    def parameters(self) -> int:
        """Exact number of parameters, counted from the shapes."""
        d, f = self.hidden_size, self.intermediate_size
        attention = d * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * d * f + 2 * d
        embeddings = self.vocab_size * d * (1 if self.tied else 2)
        return embeddings + self.layers * layer + d

    def flops_per_token(self, context: int) -> float:
        """Forward operations for one token that attends to `context` positions (2 per MAC)."""
        matrices = self.parameters - self.vocab_size * self.hidden_size * (not self.tied)
        return 2.0 * matrices + 4.0 * self.layers * self.heads * self.head_dim * context

    def cache_bytes(self, context: int) -> int:
        """Keys and values of one sequence of `context` positions in bf16."""
        held = min(context, self.sliding_window or context)
        return 4 * self.layers * self.kv_heads * self.head_dim * held

    def with_context(self, max_positions: int, rope_theta: float) -> DecoderConfig:
        """The same model at another context length and RoPE base, as midtraining makes it."""
        return replace(self, max_positions=max_positions, rope_theta=rope_theta)


def from_hf(raw: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """Reads the dense decoder that a Hugging Face configuration describes.

    That of a model that also sees or hears has these keys for its decoder.
    Both homes of the RoPE settings are read: `rope_theta` / `rope_scaling` beside the other keys,
    and `rope_parameters`, where transformers 5 writes them.

    Raises:
        PhikitError: a needed key is missing, or RoPE is scaled in a way the family does not use.
    """

    shape = shape_of(raw, where)
    rope = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or (rope if rope.get("rope_type") != "default" else {}) or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in (None, "default", "longrope"):
        raise PhikitError(f"{where}: RoPE scaling {kind!r} is not one that the family uses")
    long_rope = None
    if kind == "longrope":
        original = raw.get("original_max_position_embeddings") or scaling.get(
            "original_max_position_embeddings", shape["max_positions"]
        )
        long_rope = LongRope(
            tuple(map(float, scaling["short_factor"])),
            tuple(map(float, scaling["long_factor"])),
            int(original),
        )
    window = raw.get("sliding_window")
    return DecoderConfig(
        **shape,
        head_dim=int(raw.get("head_dim") or shape["hidden_size"] // shape["heads"]),
        rope_theta=float(raw.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        rope_fraction=float(
            raw.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0
        ),
        long_rope=long_rope,
        sliding_window=int(window) if window else None,
        norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        tied=bool(raw.get("tie_word_embeddings", False)),
        bos_id=raw.get("bos_token_id"),
        eos_ids=end_ids(raw.get("eos_token_id")),
        pad_id=raw.get("pad_token_id"),
        architecture=(raw.get("architectures") or ["Phi3ForCausalLM"])[0],
    )


def to_hf(config: DecoderConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The `config.json` that transformers, vLLM and phikit read back as the same model."""
    raw: dict[str, Any] = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **shape_keys(config, dtype),
        "head_dim": config.head_dim,
        "original_max_position_embeddings": config.max_positions,
        "partial_rotary_factor": config.rope_fraction,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
    }
    if config.long_rope is not None:
        raw["original_max_position_embeddings"] = config.long_rope.original_max_positions
        raw["rope_scaling"] = {
            "type": "longrope",
            "short_factor": list(config.long_rope.short_factor),
            "long_factor": list(config.long_rope.long_factor),
        }
    return raw
