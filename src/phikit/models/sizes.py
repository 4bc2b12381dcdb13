"""What a model weighs: parameters, memory of its weights, memory of its cache.

A dense decoder is counted from its configuration, without torch; any other model from its module,
built without memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from phikit.models.decoder_config import DecoderConfig

BF16 = 2  # bytes
PRECISIONS = ("f32", "bf16", "int8", "int4")
INT4_GROUP = 128


class Plannable(Protocol):
    """What a configuration must say to be sized and planned: `architectures.Config` does."""

    @property
    def architecture(self) -> str: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    def flops_per_token(self, context: int) -> float:
        """Forward operations for one token that sees `context` positions (2 per MAC)."""
        ...

    def cache_bytes(self, context: int) -> int:
        """What one sequence of `context` positions keeps while generating, in bf16."""
        ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """The figures of one model.

    Attributes:
        parameters: all of them; a matrix that is both embedding and head counts once.
        embedding: those of the embedding and, where it has its own matrix, the head.
        matrices: those of the layers' matrices, which is what gets quantised.
        matrix_rows: outputs of all those matrices.
        activations: inputs and outputs of all those matrices, for one token.
        layers, hidden: of the decoder.
        cache_bytes_per_token: what one more position adds to a full cache, in bf16.
        full_cache_bytes: the cache of one sequence at its longest.
        context: the most positions it was made for.
    """

    parameters: int
    embedding: int
    matrices: int
    matrix_rows: int
    activations: int
    layers: int
    hidden: int
    cache_bytes_per_token: int
    full_cache_bytes: int
    context: int

    def weight_bytes(self, precision: str) -> int:
        """Memory of the weights.

        int8 and int4 quantise the layers' matrices; the embedding, the head and the norms stay in
        bf16. int8 adds a bf16 scale per output row, int4 a bf16 scale and zero per 128 weights.
        """
        if precision in ("f32", "bf16"):
            return self.parameters * (4 if precision == "f32" else BF16)
        rest = (self.parameters - self.matrices) * BF16
        if precision == "int8":
            return rest + self.matrices + self.matrix_rows * BF16
        if precision == "int4":
            return rest + self.matrices // 2 + self.matrices // INT4_GROUP * 2 * BF16
        raise ValueError(f"{precision!r} is none of {', '.join(PRECISIONS)}")


def layer_matrices(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """The matrices of one layer: name → (outputs, inputs)."""
    d, f, k = config.hidden_size, config.intermediate_size, config.head_dim
    return {
        "self_attn.qkv_proj": ((config.heads + 2 * config.kv_heads) * k, d),
        "self_attn.o_proj": (d, config.heads * k),
        "mlp.gate_up_proj": (2 * f, d),
        "mlp.down_proj": (d, f),
    }


def sizes(config: Plannable) -> Sizes:
    """Counted from the shapes."""
    if isinstance(config, DecoderConfig):
        matrices = [s for s in layer_matrices(config).values() for _ in range(config.layers)]
        d, embedding = config.hidden_size, config.vocab_size * config.hidden_size
        return _sizes(config, matrices, embedding * (1 if config.tied else 2), config.layers, d)
    return _sizes(config, *_counted(config))


def _sizes(
    config: Plannable, matrices: list[tuple[int, int]], embedding: int, layers: int, hidden: int
) -> Sizes:
    longest = config.max_positions
    full = config.cache_bytes(longest)
    return Sizes(
        parameters=config.parameters,
        embedding=embedding,
        matrices=sum(rows * columns for rows, columns in matrices),
        matrix_rows=sum(rows for rows, _ in matrices),
        activations=sum(rows + columns for rows, columns in matrices),
        layers=layers,
        hidden=hidden,
        cache_bytes_per_token=full - config.cache_bytes(longest - 1),
        full_cache_bytes=full,
        context=longest,
    )


def _counted(config: Plannable) -> tuple[list[tuple[int, int]], int, int, int]:
    """Matrices, embedding parameters, layers and width, from the module itself."""
    import torch

    from phikit.models.architectures import build

    with torch.device("meta"):
        model = build(config)  # type: ignore[arg-type]
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    head = model.get_submodule("lm_head")
    embedding = {id(p): p.numel() for m in (*tables, head) for p in m.parameters()}
    matrices = [
        (m.out_features, m.in_features)
        for m in model.modules()
        if isinstance(m, torch.nn.Linear) and id(m.weight) not in embedding
    ]
    layers = model.get_submodule("model.layers")
    return matrices, sum(embedding.values()), len(list(layers.children())), head.in_features  # type: ignore[return-value]
