"""What the `config.json` of every decoder here has in common: read, and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phikit.errors import PhikitError

#: our name → the published key, of what is one whole number
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
}


def needed(raw: Mapping[str, Any], key: str, where: str) -> Any:
    """The value of a key.

    Raises:
        PhikitError: the key is missing.
    """
    if key not in raw:
        raise PhikitError(f"{where}: the key {key!r} is missing")
    return raw[key]


def shape_of(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments that every decoder's configuration takes, but for its token ids.

    Raises:
        PhikitError: a needed key is missing.
    """
    sizes = {name: int(needed(raw, key, where)) for name, key in _SIZES.items()}
    return {
        **sizes,
        "kv_heads": int(raw.get("num_key_value_heads") or sizes["heads"]),
        "init_std": float(raw.get("initializer_range", 0.02)),
    }


def end_ids(found: Any) -> tuple[int, ...]:
    """The tokens that end a text: one, several or none are given."""
    return tuple(found) if isinstance(found, list) else () if found is None else (int(found),)


def shape_keys(config: Any, dtype: str) -> dict[str, Any]:
    """The keys that `shape_of` reads, the token ids, and what never differs."""
    return {
        **{key: getattr(config, name) for name, key in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids) or None,
        "pad_token_id": config.pad_id,
        "sliding_window": config.sliding_window,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    }
