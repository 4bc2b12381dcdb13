"""Whether data fits a model, asked once before training: an id or a position that it does not have
would be read from, or written to, somewhere beside its weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phikit.errors import PhikitError
from phikit.models.decoder_config import DecoderConfig


def check_ids(
    ids: Sequence[int] | NDArray[np.integer], config: DecoderConfig, where: object
) -> None:
    """Raises:
    PhikitError: an id is not in the model's vocabulary; says which, and `where` it stands.
    """
    array = np.asarray(ids)
    wrong = array[(array < 0) | (array >= config.vocab_size)]
    if len(wrong):
        raise PhikitError(
            f"{where}: token id {int(wrong[0])} is not in the model's vocabulary of "
            f"{config.vocab_size}",
            "it was made with another tokenizer: make it with this model's own",
        )


def check_length(tokens: int, config: DecoderConfig, setting: str, hint: str) -> None:
    """Raises:
    PhikitError: so many tokens are more than the model has positions.
    """
    if tokens > config.max_positions:
        raise PhikitError(
            f"{setting} is {tokens}, but the model's context is {config.max_positions}", hint
        )
