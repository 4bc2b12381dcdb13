"""What a model weighs: parameters, memory of its weights, memory of its cache. No torch needed."""

from __future__ import annotations

from dataclasses import dataclass

from phikit.models.decoder_config import DecoderConfig

BF16 = 2  # bytes
PRECISIONS = ("f32", "bf16", "int8", "int4")
INT4_GROUP = 128


@dataclass(frozen=True, slots=True)
class Sizes:
    """The figures of one model.

    Attributes:
        parameters: all of them; a matrix that is both embedding and head counts once.
        embedding: those of the embedding and, where it has its own matrix, the head.
        matrices: those of the layers' matrices, which is what gets quantised.
        cache_bytes_per_token: keys and values of one position in bf16, over all layers.
        context: the most positions it was made for.
    """

    parameters: int
    embedding: int
    matrices: int
    matrix_rows: int
    cache_bytes_per_token: int
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


def sizes(config: DecoderConfig) -> Sizes:
    """Counted from the shapes of a dense decoder."""
    shapes = layer_matrices(config).values()
    return Sizes(
        parameters=config.parameters,
        embedding=config.vocab_size * config.hidden_size * (1 if config.tied else 2),
        matrices=config.layers * sum(rows * columns for rows, columns in shapes),
        matrix_rows=config.layers * sum(rows for rows, _ in shapes),
        cache_bytes_per_token=2 * config.layers * config.kv_heads * config.head_dim * BF16,
        context=config.max_positions,
    )
