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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phikit.errors import PhikitError
from phikit.models import lora
from phikit.models.audio.encoder import AudioEmbedding, rows_of
from phikit.models.decoder import Attend, Decoder, rope_tables
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
        rope_length: int | None = None,
        media: Media | None = None,
        modes: Sequence[InputMode] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D].

        Args:
            media: what stands for the placeholder tokens. Without it such a token is refused,
                except where `modes` is given: then it is a token like any other.
            modes: of each row; what the row holds decides when left out. Continuing a prompt
                needs it, since the new tokens do not tell.
            lengths: of each row without its padding, which is on the right. With LongRoPE each
                row turns by its own length's factors; `rope_length` is one length for all.
        """
        if media is not None or modes is None:
            x_BLD = self.embed(ids_BL, media or Media())
        else:
            x_BLD = self.model.embed_tokens(ids_BL)
        if positions_BL is None:
            positions_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device)[None]
        rope = self._rope(positions_BL, rope_length, lengths)
        return self.hidden_of(x_BLD, rope, modes or self.modes_of(ids_BL), attend)

    def hidden_of(
        self,
        x_BLD: Tensor,
        rope: tuple[Tensor, Tensor],
        modes: Sequence[InputMode],
        attend: Attend | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D] of embedded rows, each with its mode's adapter."""
        adapters = [mode.adapter for mode in modes]
        if not any(adapters):
            return self.through_layers(x_BLD, rope, attend or self.attend)
        with lora.route(adapters):
            return self.through_layers(x_BLD, rope, attend or self.attend)

    def forward(
        self,
        ids_BL: Tensor,
        positions_BL: Tensor | None = None,
        attend: Attend | None = None,
        rope_length: int | None = None,
        media: Media | None = None,
        modes: Sequence[InputMode] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits [B, L, V]; arguments as for `hidden`."""
        return self.lm_head(
            self.hidden(ids_BL, positions_BL, attend, rope_length, media, modes, lengths)
        )

    def _rope(
        self, positions_BL: Tensor, rope_length: int | None, lengths: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        """Rotations by one length for all rows, or by each row's own."""
        if lengths is None:
            return rope_tables(self.config, positions_BL, rope_length)
        if rope_length is not None:
            raise PhikitError("give either rope_length, one for all rows, or lengths, one for each")
        rows = positions_BL.expand(len(lengths), -1).split(1)
        tables = [
            rope_tables(self.config, row_1L, length)
            for row_1L, length in zip(rows, lengths, strict=True)
        ]
        cos, sin = zip(*tables, strict=True)
        return torch.cat(cos), torch.cat(sin)
