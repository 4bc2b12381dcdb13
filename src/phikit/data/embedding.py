"""Texts as vectors of their meaning, by a small sentence encoder (BERT with mean pooling).

Shapes: B texts, L tokens, D width, H heads, K head size.

The encoder is all-MiniLM-L6-v2 (`phikit fetch minilm`), 23 million parameters, or any other in the
same form: `config.json`, `model.safetensors`, `tokenizer.json`. Texts of the same number of tokens
go through it together, so none is padded. The same texts in the same order give the same vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from phikit.data.vectors import MODEL, Vectors
from phikit.errors import PhikitError
from phikit.files import explain_os_errors, read_json

_LONGEST = 256  # tokens of a text that are read, as the encoder was trained
_WINDOW = 512  # texts that are sorted by length together
_TOKENS = 4096  # that go through it at once


class Encoder:
    """A sentence encoder.

    Args:
        folder: where its files are.

    Raises:
        PhikitError: a file is missing, or is none of such an encoder.
    """

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "config.json")
        path = folder / "model.safetensors"
        try:
            with explain_os_errors(path, "reading"):
                self._weights = load_file(path)
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
            self._eps, self.width = config["layer_norm_eps"], config["hidden_size"]
            self._weights["embeddings.LayerNorm.weight"]
        except PhikitError:
            raise
        except Exception as e:  # the tokenizer's library raises bare Exception
            raise PhikitError(
                f"{folder}: not a sentence encoder ({e})", f"phikit fetch {MODEL}"
            ) from e
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_LONGEST)

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Of each text a vector of length 1, [B, D]; only its first 256 tokens are read."""
        result = np.zeros((len(texts), self.width), np.float32)
        for first in range(0, len(texts), _WINDOW):
            window = self._tokenizer.encode_batch(list(texts[first : first + _WINDOW]))
            alike: dict[int, list[int]] = {}
            for number, encoded in enumerate(window):
                alike.setdefault(len(encoded.ids), []).append(number)
            for length, numbers in sorted(alike.items()):
                left = iter(numbers)
                while some := list(islice(left, max(1, _TOKENS // length))):
                    ids_BL = torch.tensor([window[n].ids for n in some])
                    result[[first + n for n in some]] = self._forward(ids_BL).numpy()
        return result

    @torch.inference_mode()
    def _forward(self, ids_BL: Tensor) -> Tensor:
        w = self._weights
        x_BLD = (
            w["embeddings.word_embeddings.weight"][ids_BL]
            + w["embeddings.position_embeddings.weight"][: ids_BL.shape[1]]
            + w["embeddings.token_type_embeddings.weight"][0]
        )
        x_BLD = self._norm(x_BLD, "embeddings.LayerNorm")
        for layer in range(self._layers):
            name = f"encoder.layer.{layer}"
            q_BHLK, k_BHLK, v_BHLK = (
                self._linear(x_BLD, f"{name}.attention.self.{part}")
                .unflatten(-1, (self._heads, -1))
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            mixed_BLD = (
                F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK).transpose(1, 2).flatten(2)
            )
            out_BLD = self._linear(mixed_BLD, f"{name}.attention.output.dense")
            x_BLD = self._norm(x_BLD + out_BLD, f"{name}.attention.output.LayerNorm")
            inner = F.gelu(self._linear(x_BLD, f"{name}.intermediate.dense"))
            out_BLD = self._linear(inner, f"{name}.output.dense")
            x_BLD = self._norm(x_BLD + out_BLD, f"{name}.output.LayerNorm")
        return F.normalize(x_BLD.mean(1), dim=-1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x_BLD: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x_BLD, weight.shape, weight, bias, self._eps)
