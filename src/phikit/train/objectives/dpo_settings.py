"""Settings of DPO's loss."""

from __future__ import annotations

from pydantic import Field

from phikit.stage import Config


class DpoLoss(Config):
    """The loss of a pair. phi-4's β was not published."""

    beta: float = Field(default=0.1, gt=0, description="strength of the pull to the reference")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of the pairs believed to be the wrong way"
    )
    length_normalised: bool = Field(
        default=False, description="mean instead of summed log-probabilities"
    )
    anchor: float = Field(
        default=0.0, ge=0, description="factor of the chosen answer's mean NLL, added to the loss"
    )
