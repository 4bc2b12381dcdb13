"""The family as text: a table of all members, and one member drawn layer by layer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from phikit.models.decoder_config import DecoderConfig
from phikit.models.family import MEMBERS, Member
from phikit.models.flash.config import FlashConfig
from phikit.models.multimodal.config import Phi4MMConfig
from phikit.models.sizes import PRECISIONS, Sizes, layer_matrices, sizes
from phikit.models.vision.reasoning_config import ReasoningVisionConfig

_NAME, _SHAPE, _COUNT = 24, 32, 8  # widths of the drawing's columns


def as_data(members: Sequence[Member] = MEMBERS) -> list[dict[str, Any]]:
    """What the table shows, as JSON-able values; memory in bytes."""
    rows = []
    for member in members:
        size = sizes(member.config)
        rows.append(
            {
                "name": member.name,
                "repository": member.repository,
                "about": member.about,
                "parameters": size.parameters,
                "embedding_parameters": size.embedding,
                "context": size.context,
                "weight_bytes": {p: size.weight_bytes(p) for p in PRECISIONS},
                "cache_bytes_per_token": size.cache_bytes_per_token,
                "full_cache_bytes": size.full_cache_bytes,
            }
        )
    return rows


def table(members: Sequence[Member] = MEMBERS) -> str:
    """All members in one line each; memory in GB (10⁹ bytes)."""
    header = ["model", "parameters", "context", *PRECISIONS, "cache/token", "full cache"]
    lines = [header]
    for member in members:
        size = sizes(member.config)
        lines.append(
            [
                member.name,
                count(size.parameters),
                f"{size.context:,}",
                *(gigabytes(size.weight_bytes(p)) for p in PRECISIONS),
                f"{size.cache_bytes_per_token / 1000:.1f} kB",
                gigabytes(size.full_cache_bytes),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join(
        [
            *shown,
            "",
            "Weights in GB per precision; int8 and int4 keep the embedding, the head and the norms",
            "in bf16; the cache is a sequence's keys and values in bf16, full at its end.",
            "phikit models NAME explains one.",
        ]
    )


def explain(member: Member) -> str:
    """A member's figures and its layers, drawn."""
    config, size = member.config, sizes(member.config)
    return "\n".join(
        [
            f"{member.name}: {member.about}",
            f"weights     {member.repository}",
            f"parameters  {size.parameters:,} ({size.parameters - size.embedding:,} without "
            "the embeddings)",
            f"context     {config.max_positions:,} positions",
            "memory      " + ", ".join(_memory(size, p) for p in PRECISIONS),
            f"cache       {size.cache_bytes_per_token:,} bytes per position in bf16, "
            f"{gigabytes(size.full_cache_bytes)} GB when the context is full",
            *(line for text in _beside(config) for line in _wrapped(text)),
            "",
            *(_drawing(config) if isinstance(config, DecoderConfig) else _flash(config)),
        ]
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 79, subsequent_indent=" " * 12)


def _beside(config: DecoderConfig | FlashConfig) -> list[str]:
    """What a model has that is not its decoder."""
    if isinstance(config, ReasoningVisionConfig):
        vision = config.vision
        seeing = config.parameters - config.decoder.parameters
        return [
            f"sees        SigLIP 2, {vision.layers} layers of {vision.hidden_size:,}, a picture as "
            f"{config.least_patches:,} to {config.most_patches:,} patches of {vision.patch_size} × "
            f"{vision.patch_size} pixels, each a token; {count(seeing)} with its projector",
        ]
    if isinstance(config, Phi4MMConfig):
        vision, audio, adapters = config.vision, config.audio, config.adapter_parameters
        return [
            f"sees        SigLIP, {vision.layers} layers of {vision.hidden_size:,}, crops of "
            f"{config.crop} × {config.crop}; {count(config.image_parameters)} with its projector",
            f"hears       conformer, {audio.layers} blocks of {audio.hidden_size:,}, 80 ms to a "
            f"token; {count(audio.parameters)} with its two projectors",
            f"adapters    vision of rank {config.vision_lora.rank} ({count(adapters['vision'])}), "
            f"speech of rank {config.speech_lora.rank} ({count(adapters['speech'])}), beside every "
            "matrix of the layers",
        ]
    return []


def count(number: float) -> str:
    """1234567 → "1.23M"."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.{2 if number < 100 * unit else 1}f}{name}"
    return f"{number:g}"


def gigabytes(size: float) -> str:
    """Bytes in units of 10⁹, with two digits behind the point below ten of them."""
    return f"{size / 1e9:.{2 if size < 1e10 else 1}f}"


def _memory(size: Sizes, precision: str) -> str:
    return f"{gigabytes(size.weight_bytes(precision))} GB in {precision}"


def row(name: str, shape: str = "", parameters: int = 0) -> str:
    """A line of the sheet: a tensor's name, its shape, its parameters."""
    held = count(parameters) if parameters else ""
    return f"{name:<{_NAME}}{shape:<{_SHAPE}}{held:>{_COUNT}}".rstrip()


def _box(title: str, lines: list[str]) -> list[str]:
    width = _NAME + _SHAPE + _COUNT
    return [
        f"┌─┴{f' {title} ':─<{width}}┐",
        *(f"│ {line:<{width}} │" for line in lines),
        f"└─┬{'':─<{width}}┘",
    ]


def _drawing(config: DecoderConfig) -> list[str]:
    d, matrices = config.hidden_size, layer_matrices(config)

    def matrix(name: str) -> str:
        rows, columns = matrices[name]
        return row(f"│ │ {name.split('.')[1]}", f"{columns:,} → {rows:,}", rows * columns)

    epsilon = f"ε {config.norm_eps:g}"
    inside = [
        row("├─╮ RMSNorm", epsilon, d),
        matrix("self_attn.qkv_proj"),
        f"│ │ {config.heads} query, {config.kv_heads} key, {config.kv_heads} value heads of "
        f"{config.head_dim}",
        f"│ │ RoPE on {_rope(config)}",
        f"│ │ attention to {_seen(config)}",
        matrix("self_attn.o_proj"),
        "⊕─╯",
        row("├─╮ RMSNorm", epsilon, d),
        matrix("mlp.gate_up_proj"),
        f"│ │ SiLU(gate) × up, {config.intermediate_size:,} each",
        matrix("mlp.down_proj"),
        "⊕─╯",
    ]
    layer = sum(rows * columns for rows, columns in matrices.values()) + 2 * d
    title = f"{config.layers} layers of {count(layer)}"
    vocab = config.vocab_size
    head = "the embedding's matrix" if config.tied else f"{d:,} → {vocab:,}"
    return [
        "  token ids",
        "  " + row("embed_tokens", f"{vocab:,} × {d:,}", vocab * d),
        *_box(title, inside),
        "  " + row("norm", f"RMSNorm, {epsilon}", d),
        "  " + row("lm_head", head, 0 if config.tied else vocab * d),
        "  logits",
    ]


def _flash(config: FlashConfig) -> list[str]:
    """Mixers only: the MLP that follows each is the same everywhere, and drawn last."""
    d, f, i = config.hidden_size, config.intermediate_size, config.inner_size
    vocab, epsilon = config.vocab_size, f"ε {config.norm_eps:g}"

    def matrix(name: str, columns: int, rows: int) -> str:
        return row(f"│ │ {name}", f"{columns:,} → {rows:,}", rows * columns)

    def block(*lines: str) -> list[str]:
        return [row("├─╮ LayerNorm", epsilon, 2 * d), *lines, "⊕─╯"]

    keys = 2 * config.kv_heads * config.head_dim

    def attention(rows: int, *seen: str) -> list[str]:
        lines = [f"│ │ {line}" for line in seen]
        return block(matrix("Wqkv", d, rows), *lines, matrix("out_proj", d, d))

    mamba = block(
        matrix("in_proj", d, 2 * i),
        f"│ │ convolution over {config.conv_width} positions, SiLU",
        matrix("x_proj", i, config.dt_rank + 2 * config.state_size),
        matrix("dt_proj", config.dt_rank, i),
        f"│ │ scan: {config.state_size} states of {i:,} channels, gated",
        matrix("out_proj", i, d),
    )
    heads = f"{config.heads} query, {config.kv_heads} key, {config.kv_heads} value heads of "
    memory = [*mamba[:-2], "│ │ before its gate: kept as the memory", *mamba[-2:]]
    window = f"differential attention to the latest {config.sliding_window:,}"
    everything = "differential attention to all earlier positions"
    gated = block(matrix("in_proj", d, i), "│ │ gates the memory", matrix("out_proj", i, d))
    mlp = block(
        matrix("fc1", d, 2 * f), f"│ │ SiLU(gate) × up, {f:,} each", matrix("fc2", f, d)
    )  # fmt: skip
    pairs = config.layers // 4
    return [
        "  token ids",
        "  " + row("embed_tokens", f"{vocab:,} × {d:,}", vocab * d),
        *_box(
            f"{pairs} pairs of layers: Mamba, window",
            [*mamba, *attention(d + keys, f"{heads}{config.head_dim}", window)],
        ),
        *_box("1 pair: what is kept", [*memory, *attention(d + keys, everything)]),
        *_box(
            f"{pairs - 1} pairs: gated memory, cross-attention",
            [*gated, *attention(d, f"{everything},", "with the keys and values kept above")],
        ),
        *_box("after each mixer above", mlp),
        "  " + row("final_layernorm", f"LayerNorm, {epsilon}", 2 * d),
        "  " + row("lm_head", "the embedding's matrix" if config.tied else f"{d:,} → {vocab:,}"),
        "  logits",
    ]


def _rope(config: DecoderConfig) -> str:
    share = (
        f"{config.rotary_dim} of {config.head_dim} dimensions"
        if config.rotary_dim < config.head_dim
        else "every dimension"
    )
    long = config.long_rope
    beyond = f"; LongRoPE past {long.original_max_positions:,}" if long else ""
    return f"{share}, θ {config.rope_theta:,.0f}{beyond}"


def _seen(config: DecoderConfig) -> str:
    window = config.sliding_window
    if window and window < config.max_positions:
        return f"the latest {window:,} positions"
    return "all earlier positions"
