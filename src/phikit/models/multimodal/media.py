"""What a batch of prompts sees and hears, and which row each of it belongs to.

Shapes: B rows, L sequence, N crops, S side of a crop in pixels, P patches on a side of a crop,
T frames of 10 ms, M mel features.

In a prompt, a picture of so many rows is so many times the image token, and a clip likewise. There
is no mark between one picture and the next: the sizes say where a picture ends, and everything is
in the order of its tokens, row of the batch by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from phikit.errors import PhikitError


@dataclass(frozen=True)
class Media:
    """Pictures and clips in the order of their tokens.

    Attributes:
        crops_NCSS, valid_NPP, grids: pictures, as `models.vision.hd.ImageEmbedding` takes them;
            None and empty for none.
        clips: log-mel frames of each clip, [T, M], as `models.audio.features.log_mel` makes them.
    """

    crops_NCSS: Tensor | None = None
    valid_NPP: Tensor | None = None
    grids: tuple[tuple[int, int], ...] = ()
    clips: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        parts = (self.crops_NCSS is not None, self.valid_NPP is not None, bool(self.grids))
        if len(set(parts)) > 1:
            raise PhikitError("pictures need crops_NCSS, valid_NPP and grids, all three or none")

    def __bool__(self) -> bool:
        return bool(self.grids or self.clips)


def rows_of_items(places_B: Sequence[int], sizes: Sequence[int], what: str) -> list[int]:
    """The row of each picture or clip.

    Args:
        places_B: how many placeholder tokens each row has.
        sizes: how many tokens each picture or clip takes.
        what: "picture" or "clip", for the error.

    Raises:
        PhikitError: the tokens of some row are not those of whole pictures or clips.
    """
    owners: list[int] = []
    for row, places in enumerate(places_B):
        left = places
        while left > 0 and len(owners) < len(sizes):
            left -= sizes[len(owners)]
            owners.append(row)
        if left != 0:
            raise PhikitError(
                f"row {row} of the batch has {places} tokens for {what}s, but the {what}s given "
                f"take {', '.join(map(str, sizes)) or 'none'}",
                f"each {what} needs as many tokens as it has rows, in the same order",
            )
    if len(owners) < len(sizes):
        raise PhikitError(
            f"{len(sizes)} {what}s were given, but the prompts have tokens for {len(owners)}"
        )
    return owners
