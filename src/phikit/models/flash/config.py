"""The shape of a SambaY decoder, read from and written to a `config.json`.

Source: Ren et al. 2025, "Decoder-Hybrid-Decoder Architecture" (arXiv 2507.06607), and the published
configuration of microsoft/Phi-4-mini-flash-reasoning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from phikit.errors import PhikitError
from phikit.models.hf_keys import end_ids, needed, shape_keys, shape_of

ARCHITECTURE = "Phi4FlashForCausalLM"


class Kind(Enum):
    """What mixes a layer's positions."""

    MAMBA = "Mamba"
    WINDOW = "sliding-window differential attention"
    FULL = "full differential attention"
    GMU = "gated memory unit"
    CROSS = "differential cross-attention"


@dataclass(frozen=True, slots=True)
class FlashConfig:
    """SambaY with differential attention, LayerNorm with bias, and no positional encoding.

    The self-decoder is the first half: Mamba and sliding-window attention in turn. Then come the
    memory layer (Mamba, whose output before its gate is kept) and the one layer of full attention.
    The rest, gated memory units and cross-attention in turn, reads only what these two kept.

    Attributes:
        head_dim: hidden_size / heads. Differential attention works on pairs of heads.
        state_size, conv_width, inner_size, dt_rank: of Mamba: the states of each channel, the taps
            of its convolution, the channels, and the width that the time steps pass through.
        sliding_window: what the first half attends to: this many latest positions, itself included.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    sliding_window: int
    max_positions: int
    dt_rank: int
    inner_size: int
    state_size: int = 16
    conv_width: int = 4
    norm_eps: float = 1e-5
    tied: bool = True
    init_std: float = 0.02
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    architecture: str = ARCHITECTURE

    def __post_init__(self) -> None:
        if self.layers % 4 or self.layers <= 0:
            raise PhikitError(
                f"a SambaY decoder has {self.layers} layers; it needs a multiple of 4",
                "both halves are made of pairs of layers",
            )
        if self.heads % self.kv_heads or self.kv_heads % 2:
            raise PhikitError(
                f"differential attention cannot pair {self.heads} query heads with "
                f"{self.kv_heads} key-value heads",
                "choose an even number of key-value heads, and heads as a multiple of it",
            )
        if self.hidden_size % self.heads:
            raise PhikitError(
                f"hidden_size {self.hidden_size} is no multiple of the {self.heads} heads"
            )
        small = min(
            self.sliding_window, self.dt_rank, self.inner_size, self.state_size, self.conv_width - 1
        )
        if small < 1:
            raise PhikitError(
                "a SambaY decoder needs sliding_window, dt_rank, inner_size and state_size of at "
                "least 1 and conv_width of at least 2"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def memory_layer(self) -> int:
        """The Mamba layer whose output the gated memory units read."""
        return self.layers // 2

    @property
    def full_layer(self) -> int:
        """The layer whose keys and values the cross-attention reads."""
        return self.layers // 2 + 1

    def kind(self, layer: int) -> Kind:
        """What the layer of that index, from 0, is made of."""
        if layer % 2 == 0:
            return Kind.MAMBA if layer <= self.memory_layer else Kind.GMU
        if layer < self.full_layer:
            return Kind.WINDOW
        return Kind.FULL if layer == self.full_layer else Kind.CROSS

    def of_kind(self, *kinds: Kind) -> list[int]:
        """The layers of these kinds."""
        return [i for i in range(self.layers) if self.kind(i) in kinds]

    @property
    def parameters(self) -> int:
        """Exact number of parameters, counted from the shapes.

        The released layout has 3,852,562,944, and the published index of its weight files lists 434
        tensors, as many as this layout has. Table 7 of the paper says 3841.4 M, and 3329.2 M
        without the embedding: it leaves out the 17.7 M of Mamba's small tensors, norms, biases and
        λ vectors, and counts one block of hidden_size² (6.6 M) that the layout does not have.
        """
        d = self.hidden_size
        embeddings = self.vocab_size * d * (1 if self.tied else 2)
        return embeddings + 2 * d + sum(self.layer_parameters(i) for i in range(self.layers))

    def layer_parameters(self, layer: int) -> int:
        """Parameters of one layer: its mixer, its MLP and its two norms."""
        d, i, n = self.hidden_size, self.inner_size, self.state_size
        rest = 3 * d * self.intermediate_size + 4 * d
        kind = self.kind(layer)
        if kind is Kind.GMU:
            return rest + 2 * d * i
        if kind is Kind.MAMBA:
            convolution = i * (self.conv_width + 1)
            steps = i * (self.dt_rank + 2 * n) + i * (self.dt_rank + 1)
            return rest + 3 * d * i + convolution + steps + i * n + i
        rows = d if kind is Kind.CROSS else d + 2 * self.kv_heads * self.head_dim
        projections = d * rows + rows + d * d + d
        return rest + projections + 6 * self.head_dim  # four λ vectors, and the norm of a pair

    def flops_per_token(self, context: int) -> float:
        """Forward operations for one token that sees `context` positions (2 per MAC).

        A differential map has values of twice the head's size, so attention costs 1.5 times what
        the same heads cost without it. The scan is counted as 8 operations for each state.
        """
        matrices = self.parameters - self.vocab_size * self.hidden_size * (not self.tied)
        seen = len(self.of_kind(Kind.WINDOW)) * min(context, self.sliding_window)
        seen += len(self.of_kind(Kind.FULL, Kind.CROSS)) * context
        attention = 6.0 * self.heads * self.head_dim * seen
        scan = 8.0 * len(self.of_kind(Kind.MAMBA)) * self.inner_size * self.state_size
        return 2.0 * matrices + attention + scan

    def cache_bytes(self, context: int) -> int:
        """What one sequence of `context` positions keeps while generating, in bf16.

        Mamba's states are kept in float32. All but one layer keep a fixed amount.
        """
        per_position = 4 * self.kv_heads * self.head_dim
        window = len(self.of_kind(Kind.WINDOW)) * per_position
        mamba = self.inner_size * (2 * (self.conv_width - 1) + 4 * self.state_size)
        held = min(context, self.sliding_window)
        return len(self.of_kind(Kind.MAMBA)) * mamba + window * held + per_position * context


# What the published configuration class falls back to. They are ids of another vocabulary's control
# tokens and ordinary text in this one: as an end of text they would cut answers short.
_FOREIGN_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def from_hf(raw: Mapping[str, Any], where: str = "config.json") -> FlashConfig:
    """Reads the configuration of a `Phi4FlashForCausalLM`.

    Token ids that are all the published class's defaults count as not given.

    Raises:
        PhikitError: a needed key is missing, or asks for what the released model does not have.
    """

    shape = shape_of(raw, where)
    foreign = all(raw.get(key, value) == value for key, value in _FOREIGN_IDS.items())

    def token(key: str) -> Any:
        return None if foreign else raw.get(key)

    refused = {
        "mb_per_layer": (2,), "mlp_bias": (False, None), "lm_head_bias": (False, None),
        "mamba_conv_bias": (True,), "mamba_proj_bias": (False, None), "hidden_act": ("silu",),
    }  # fmt: skip
    for key, allowed in refused.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise PhikitError(
                f"{where}: {key!r} is {raw[key]!r}; phikit's flash model has it as {allowed[0]!r}"
            )
    hidden = shape["hidden_size"]
    rank = raw.get("mamba_dt_rank", "auto")
    window = needed(raw, "sliding_window", where)  # one number, or what the published class makes
    if isinstance(window, list):
        window = next((w for w in window if w), 0)
    return FlashConfig(
        **shape,
        sliding_window=int(window),
        dt_rank=math.ceil(hidden / 16) if rank == "auto" else int(rank),
        inner_size=int(raw.get("mamba_expand", 2) * hidden),
        state_size=int(raw.get("mamba_d_state", 16)),
        conv_width=int(raw.get("mamba_d_conv", 4)),
        norm_eps=float(raw.get("layer_norm_eps", 1e-5)),
        tied=bool(raw.get("tie_word_embeddings", True)),
        bos_id=token("bos_token_id"),
        eos_ids=end_ids(token("eos_token_id")),
        pad_id=token("pad_token_id"),
    )


def to_hf(config: FlashConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The `config.json` that the published code, and phikit, read back as the same model.

    Raises:
        PhikitError: the format cannot say it: Mamba's width is no multiple of the model's.
    """
    expand, rest = divmod(config.inner_size, config.hidden_size)
    if rest:
        raise PhikitError(
            f"inner_size {config.inner_size} is no multiple of hidden_size {config.hidden_size}, "
            "which config.json needs"
        )
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "phi4flash",
        **shape_keys(config, dtype),
        "mb_per_layer": 2,
        "mamba_d_state": config.state_size,
        "mamba_d_conv": config.conv_width,
        "mamba_expand": expand,
        "mamba_dt_rank": config.dt_rank,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "layer_norm_eps": config.norm_eps,
    }


# Paper and published config.json. The card promises 64K positions. Its end tokens are phi-4-mini's,
# whose tokenizer and chat format it has, without a system message of its own.
PHI_4_MINI_FLASH = FlashConfig(
    vocab_size=200_064,
    hidden_size=2560,
    intermediate_size=10_240,
    layers=32,
    heads=40,
    kv_heads=20,
    sliding_window=512,
    max_positions=262_144,
    dt_rank=160,
    inner_size=5120,
    bos_id=199_999,
    eos_ids=(200_020, 199_999),
    pad_id=199_999,
)
