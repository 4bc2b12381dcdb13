"""What a prompt holds decides which adapter and which audio projector work on it."""

from __future__ import annotations

from enum import Enum


class InputMode(Enum):
    """The values are those of the published code's `input_mode`."""

    LANGUAGE = 0
    VISION = 1
    SPEECH = 2
    VISION_SPEECH = 3

    @property
    def adapter(self) -> str | None:
        """With a picture the vision adapter, with sound alone the speech adapter, else none."""
        return {InputMode.LANGUAGE: None, InputMode.SPEECH: "speech"}.get(self, "vision")

    @property
    def projector(self) -> str:
        """Sound beside a picture has a projector of its own."""
        return "vision" if self.adapter == "vision" else "speech"

    @staticmethod
    def of(images: bool, sounds: bool) -> InputMode:
        """The mode of a prompt with pictures, sounds, both or neither."""
        return InputMode(int(images) + 2 * int(sounds))
