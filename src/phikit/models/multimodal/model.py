"""phi-4-multimodal: a dense decoder in whose prompts pictures and sound stand among the words.

Shapes: B batch, L sequence, D model width, V vocabulary.

Where a prompt has image or audio tokens, the rows of the pictures and clips take the places of
their embeddings. Which adapter then works in every linear layer of the decoder, and which
projector the clips go through, follows from what a row holds (`modes.InputMode`): row by row here,
while the published code and transformers take one mode for the whole batch. So a row's result is
the one that it has alone, whatever its neighbours hold.

Names of parameters are those of the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from phikit.errors import PhikitError
from phikit.models import lora
from phikit.models.audio.encoder import AudioEmbedding, rows_of
from phikit.models.continuation import Choose, generate, likeliest
from phikit.models.decoder import Attend, Decoder
from phikit.models.multimodal.config import Phi4MMConfig
from phikit.models.multimodal.media import Media, rows_of_items
from phikit.models.multimodal.modes import InputMode
from phikit.models.vision.hd import ImageEmbedding


class MediaEmbedding(nn.Module):
    """Sight and hearing."""

    def __init__(self, config: Phi4MMConfig) -> None:
        super().__init__()
        self.image_embed = ImageEmbedding(config.vision, config.hidden_size)
        self.audio_embed = AudioEmbedding(config.audio)


class Phi4MM(Decoder):
    """`Phi4MMForCausalLM`. Without media it is the dense decoder, its adapters at rest."""

    config: Phi4MMConfig

    def __init__(self, config: Phi4MMConfig) -> None:
        super().__init__(config)
        self.config = config
        self.model.embed_tokens_extend = MediaEmbedding(config)
        lora.add(self.model, "vision", config.vision_lora)
        lora.add(self.model, "speech", config.speech_lora)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Random weights, drawn in parameter order: normal for matrices, norms at one."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, self.config.init_std, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, buffer in self.named_buffers():
            buffer.fill_(1.0 if name.endswith("global_invstd") else 0.0)

    def modes_of(self, ids_BL: Tensor) -> list[InputMode]:
        """The mode of each prompt, by the tokens that it has."""
        image_B = (ids_BL == self.config.image_id).any(1).tolist()
        audio_B = (ids_BL == self.config.audio_id).any(1).tolist()
        return [InputMode.of(*row) for row in zip(image_B, audio_B, strict=True)]

    def embed(self, ids_BL: Tensor, media: Media) -> Tensor:
        """What goes into the layers, [B, L, D]: embeddings, and in their places pictures and clips.

        Raises:
            PhikitError: the placeholder tokens are not those of the pictures and clips.
        """
        x_BLD = self.model.embed_tokens(ids_BL)
        extend: Any = self.model.embed_tokens_extend
        image_BL, audio_BL = ids_BL == self.config.image_id, ids_BL == self.config.audio_id
        images: list[Tensor] = []
        if media.crops_NCSS is not None and media.valid_NPP is not None:
            images = extend.image_embed(
                media.crops_NCSS.to(x_BLD.device), media.valid_NPP.to(x_BLD.device), media.grids
            )
        rows_of_items(image_BL.sum(1).tolist(), [len(rows) for rows in images], "picture")
        sizes = [rows_of(len(clip)) for clip in media.clips]
        owners = rows_of_items(audio_BL.sum(1).tolist(), sizes, "clip")
        if images:
            x_BLD = x_BLD.index_put((image_BL,), torch.cat(images).to(x_BLD.dtype))
        if media.clips:
            modes = self.modes_of(ids_BL)
            sounds = extend.audio_embed(media.clips, [modes[row].projector for row in owners])
            x_BLD = x_BLD.index_put((audio_BL,), torch.cat(sounds).to(x_BLD.dtype))
        return x_BLD

    def hidden(
        self,
        ids_BL: Tensor,
        positions_BL: Tensor | None = None,
        attend: Attend | None = None,
        rope_length: int | Sequence[int] | None = None,
        inputs_embeds_BLD: Tensor | None = None,
        media: Media | None = None,
        modes: Sequence[InputMode] | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D]; see `Decoder.hidden`.

        Rows of different lengths are filled up on the right; with LongRoPE, `rope_length` then
        says each row's own length, so that it turns by the factors that it has alone.

        Args:
            media: what stands for the placeholder tokens. Without it such a token is refused.
            modes: of each row. When left out, what a row holds decides. With `inputs_embeds_BLD`
                the ids do not tell: then the `lora.route` in force decides, as it does for text.
        """
        if inputs_embeds_BLD is None:
            inputs_embeds_BLD = self.embed(ids_BL, media or Media())
            modes = modes or self.modes_of(ids_BL)
        elif media:
            raise PhikitError("give either media or inputs_embeds_BLD, in which they already are")
        adapters = [mode.adapter for mode in modes or ()]
        with lora.route(adapters) if any(adapters) else nullcontext():
            return super().hidden(ids_BL, positions_BL, attend, rope_length, inputs_embeds_BLD)

    def forward(
        self,
        ids_BL: Tensor,
        positions_BL: Tensor | None = None,
        attend: Attend | None = None,
        rope_length: int | Sequence[int] | None = None,
        media: Media | None = None,
        modes: Sequence[InputMode] | None = None,
    ) -> Tensor:
        """Logits [B, L, V]; arguments as for `hidden`."""
        return self.lm_head(
            self.hidden(ids_BL, positions_BL, attend, rope_length, media=media, modes=modes)
        )

    def answer(
        self,
        ids: Sequence[int],
        media: Media | None = None,
        max_tokens: int = 256,
        stop_ids: Collection[int] = (),
        choose: Choose = likeliest,
    ) -> Iterator[int]:
        """Yields tokens after one prompt, until one of `stop_ids`, itself included.

        Args:
            choose: draws each of them from its logits; the likeliest when left out.

        Raises:
            PhikitError: the placeholder tokens are not those of the media.
        """
        ids_1L = torch.tensor([list(ids)], device=self.lm_head.weight.device)
        with torch.no_grad():
            inputs_1LD = self.embed(ids_1L, media or Media())
        adapters = [mode.adapter for mode in self.modes_of(ids_1L)]
        room = self.config.max_positions - len(ids)
        tokens = generate(self, inputs_1LD, min(max_tokens, room), stop_ids, choose=choose)
        while True:
            with lora.route(adapters):  # not around the yield: the caller may run other rows
                token = next(tokens, None)
            if token is None:
                return
            yield token
