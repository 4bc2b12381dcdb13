"""Preference pairs out of pivots."""

from __future__ import annotations

from collections.abc import Sequence

from phikit.pivots.results import Pivot
from phikit.records import Pair


def pivot_pair(pivot: Pivot) -> Pair | None:
    """The single-token pair of a pivot; None when no alternative was confirmed on the other side.

    A token that helps is chosen over the alternative; one that harms is rejected for it. `p_acc`
    and `p_rej` are the success probabilities after the chosen and the rejected token, `p_before`
    that of the prefix, which lies between them.
    """
    other = pivot.accepted
    if other is None:
        return None
    helps = pivot.delta > 0
    return Pair(
        parents=(pivot.problem,),
        prompt_ids=pivot.prefix_ids,
        chosen_ids=(pivot.token if helps else other.token,),
        rejected_ids=(other.token if helps else pivot.token,),
        kind="pivot",
        evidence={
            "problem": pivot.problem,
            "domain": pivot.kind,
            "verifier": pivot.verifier,
            "delta": pivot.delta,
            "interval": [pivot.lower, pivot.upper],
            "p_before": pivot.p_before,
            "p_acc": pivot.p_after if helps else other.p,
            "p_rej": other.p if helps else pivot.p_after,
            "n_pivot": pivot.n_after,
            "n_astray": pivot.n_astray,
            "n_other": other.n,
            "log_e": pivot.log_e,
        },
    )


def pivot_pairs(pivots: Sequence[Pivot]) -> list[Pair]:
    """The pairs of those pivots that make one, in their order."""
    return [pair for pair in map(pivot_pair, pivots) if pair is not None]
