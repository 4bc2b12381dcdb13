"""One engine of a `policy_pool.PolicyPool`, inside a Ray actor: its weights come and go.

Weights travel as arrays of bytes, which Ray keeps once on each node and shows to every worker
there; nothing of a module is serialised.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from phikit.engine.base import collect
from phikit.engine.local import LocalEngine
from phikit.engine.ray_worker import packed_rollouts, unpacked
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.models.lora import lora_layers

#: weights by their names: each as the bytes [numel * itemsize] of its rows in order
Weights = Mapping[str, np.ndarray]


@torch.no_grad()
def weights_of(model: Decoder, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """A model's weights in one precision; views of the model's own where it has that already.

    Raises:
        PhikitError: the model carries adapters.
    """
    if any(lora_layers(model)):
        raise PhikitError(
            "weights with adapters cannot be given to a pool of engines",
            "merge the adapter first (train.adapters.merged)",
        )
    return {
        name: p.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy()
        for name, p in model.named_parameters()
    }


class PolicyWorker:
    """Computes one call after the other, each from a fresh start: `LocalEngine` lays weights out
    and makes its cache anew in every call, so no key, value or packed copy outlives a version, and
    what a call returns depends on its requests and the weights alone.

    Args:
        dtype: name of the precision to hold weights in.
        max_batch, threads, invariant: as `PolicyPool`.
    """

    def __init__(
        self, config: DecoderConfig, dtype: str, max_batch: int, threads: int, invariant: bool
    ) -> None:
        torch.set_num_threads(threads)
        with torch.device("meta"):
            model = Decoder(config).to(getattr(torch, dtype))
        model.to_empty(device="cpu").requires_grad_(False).eval()
        if config.tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        self._model = model
        self._engine = LocalEngine(model, max_batch, invariant=invariant)
        self._version = 0  # of no weights

    @torch.no_grad()
    def load(self, version: int, weights: Weights) -> int:
        """Takes over the weights of a version, by copying: Ray's own memory cannot be written to,
        and is free for the next version as soon as all have copied.

        Returns:
            the number of this process.

        Raises:
            PhikitError: they are not this model's.
        """
        self._version = 0  # half of them are no version
        mine = dict(self._model.named_parameters())
        if mine.keys() != weights.keys():
            odd = min(mine.keys() ^ weights.keys())
            raise PhikitError(f"the weights given to an engine are another model's: {odd}")
        for name, p in mine.items():
            if weights[name].nbytes != p.numel() * p.element_size():
                raise PhikitError(f"the weights given to an engine have another size: {name}")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*not writable")  # only read here
                given = torch.from_numpy(weights[name])
            p.copy_(given.view(p.dtype).view(p.shape))
        self._version = version
        return os.getpid()

    def run(self, version: int, requests: bytes) -> tuple[int, bytes]:
        """The version it holds; and the requests' rollouts, if that is the one asked for."""
        if version != self._version:
            return self._version, b""
        return version, packed_rollouts(collect(self._engine, unpacked(requests)))


def options(threads: int) -> dict[str, Any]:
    """How Ray runs a worker: spread over the nodes, one call at a time, and not started again by
    Ray itself, which would not know the weights."""
    return {"num_cpus": threads, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
