"""The audio encoder of phi-4-multimodal: a conformer on log-mel frames, 80 ms to a row.

Shapes: N windows, T frames of 10 ms, M mel features, S rows of 80 ms, D width, H heads, K head
size, C channels of the subsampling, L the decoder's width.

Module and parameter names are those of the published checkpoint, below
`model.embed_tokens_extend.audio_embed`.

Clips are a list, each as long as it is: padding and its masks exist only inside, and the result of
a clip does not depend on its neighbours. The reference takes one padded batch and gets such
batches wrong: it adds its boolean mask to the attention's bias as +1, so that padding is
attended to (transformers 5.23), and both it and the published code let the padding behind a clip
into its subsampling. What they compute for a clip alone is what is computed here for every clip.

One trait of a clip alone is kept, though it looks like an oversight, because the weights have only
ever seen it: when a clip is longer than 500 rows, its last window is filled up with zero rows, and
these are attended to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.errors import PhikitError
from phikit.models.audio.config import REDUCTION, AudioConfig

_PIECE = 500  # rows that are subsampled at once: 40 s take 0.3 GB of intermediate values in float32
_TOGETHER = 16  # windows that go through the blocks at once, and
_PADDED = 1.25  # how much longer the longest may be than the shortest (besides a few rows)


class Normaliser(nn.Module):
    """(x - mean) × 1/std of every mel feature, by constants that come with the weights."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.register_buffer("global_mean", torch.zeros(config.mels))
        self.register_buffer("global_invstd", torch.ones(config.mels))

    def forward(self, x_TM: Tensor) -> Tensor:
        return (x_TM - self.get_buffer("global_mean")) * self.get_buffer("global_invstd")


class Subsampling(nn.Module):
    """Three convolutions of stride 2 over time and frequency: 8 frames become one row.

    The first is full, the others depthwise with a pointwise one after them; ReLU after each
    ("dw_striding" in NeMo).
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        c = config.channels
        layers: list[nn.Module] = [nn.Conv2d(1, c, 3, stride=2, padding=1), nn.ReLU()]
        for _ in range(int(math.log2(REDUCTION)) - 1):
            layers += [
                nn.Conv2d(c, c, 3, stride=2, padding=1, groups=c),
                nn.Conv2d(c, c, 1),
                nn.ReLU(),
            ]
        self.conv = nn.Sequential(*layers)
        self.out = nn.Linear(c * config.mels_left, config.hidden_size)

    def forward(self, x_TM: Tensor) -> Tensor:
        """[T, M] → [S, D] with S = ceil(T / 8).

        A long clip is cut into pieces. A row sees the 7 frames before its own 8 as well, and they
        see no farther, so each piece but the first begins one row early and drops that row.
        """
        pieces = []
        for first in range(0, len(x_TM), _PIECE * REDUCTION):
            early = REDUCTION if first else 0
            piece_TM = x_TM[first - early : first + _PIECE * REDUCTION]
            maps_CSm = self.conv[1:](self._first(piece_TM))[0, :, int(early > 0) :]
            pieces.append(self.out(maps_CSm.transpose(0, 1).flatten(1)))
        return torch.cat(pieces)

    def _first(self, x_TM: Tensor) -> Tensor:
        """The first convolution, as a matrix product: [1, C, T / 2, M / 2].

        With one channel to read it is 9 products for each value. A library's convolution takes
        several times as long, and does not leave the channels last, where the next one, which is
        depthwise, works on them faster.
        """
        weight, bias = (self.conv[0].get_parameter(name) for name in ("weight", "bias"))
        patch_P9 = F.unfold(x_TM[None, None], 3, padding=1, stride=2)[0].T
        maps_PC = F.linear(patch_P9, weight.flatten(1), bias)
        maps_1TMC = maps_PC.view(1, -(-len(x_TM) // 2), -1, maps_PC.shape[1])
        return maps_1TMC.permute(0, 3, 1, 2)


class RelativeBias(nn.Module):
    """A learned number per head and relative position, shared by all blocks.

    T5's, but with a position each: no logarithmic buckets, and before and after are told apart.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.max_distance = config.max_distance
        self.bias_values = nn.Embedding(2 * config.max_distance, config.heads)

    def forward(self, length: int) -> Tensor:
        """[H, S, S]: the bias of query row i and key row j is that of position j - i."""
        index_S = torch.arange(length, device=self.bias_values.weight.device)
        apart_SS = (index_S - index_S[:, None]).clamp(-self.max_distance, self.max_distance - 1)
        return self.bias_values(apart_SS + self.max_distance).permute(2, 0, 1)


class SwishGLU(nn.Module):
    """up × swish(gate), both from one projection whose first half is up."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.linear(x).chunk(2, dim=-1)
        return up * F.silu(gate)


class FeedForward(nn.Module):
    """Half of a macaron: a block has one before and one after attention and convolution."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        d, f = config.hidden_size, config.inner_size
        self.layer_norm = nn.LayerNorm(d)
        # the second place is dropout's in the published code, and keeps the third one's name
        self.net = nn.Sequential(SwishGLU(d, f), nn.Identity(), nn.Linear(f, d))

    def forward(self, x_NSD: Tensor) -> Tensor:
        return self.net(self.layer_norm(x_NSD))


class Attention(nn.Module):
    """Full attention within a window, with biases in all four projections."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        d, self.heads = config.hidden_size, config.heads
        self.linear_q, self.linear_k = nn.Linear(d, d), nn.Linear(d, d)
        self.linear_v, self.linear_out = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x_NSD: Tensor, bias_NHSS: Tensor) -> Tensor:
        q, k, v = (
            project(x_NSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.linear_q, self.linear_k, self.linear_v)
        )
        out_NHSK = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_NHSS)
        return self.linear_out(out_NHSK.transpose(1, 2).flatten(2))


class PointwiseGLU(nn.Module):
    """up × swish(gate) by a pointwise convolution, with two more biases beside its own."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.ext_pw_conv_1d = nn.Conv1d(d, 2 * d, 1)
        self.b1 = nn.Parameter(torch.zeros(1, d, 1))
        self.b2 = nn.Parameter(torch.zeros(1, d, 1))

    def forward(self, x_NDS: Tensor) -> Tensor:
        up, gate = self.ext_pw_conv_1d(x_NDS).chunk(2, dim=1)
        return (up + self.b1) * F.silu(gate + self.b2)


class Separable(nn.Module):
    """A causal depthwise convolution over time, and a pointwise one."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        d, self.before = config.hidden_size, config.kernel - 1
        self.dw_conv = nn.Conv1d(d, d, config.kernel, groups=d)
        self.pw_conv = nn.Conv1d(d, d, 1)

    def forward(self, x_NDS: Tensor) -> Tensor:
        return self.pw_conv(self.dw_conv(F.pad(x_NDS, (self.before, 0))))


class Convolution(nn.Module):
    """The conformer's convolution module, with LayerNorm instead of batch statistics."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.layer_norm = nn.LayerNorm(d)
        self.glu = PointwiseGLU(config)
        self.dw_sep_conv_1d = Separable(config)
        self.ext_pw_conv_1d = nn.Conv1d(d, d, 1)

    def forward(self, x_NSD: Tensor) -> Tensor:
        x_NDS = self.glu(self.layer_norm(x_NSD).transpose(1, 2))
        return self.ext_pw_conv_1d(F.silu(self.dw_sep_conv_1d(x_NDS))).transpose(1, 2)


class Block(nn.Module):
    """½ feed-forward, attention, convolution, ½ feed-forward, norm (Gulati et al. 2020)."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(config)
        self.self_attn = Attention(config)
        self.conv = Convolution(config)
        self.feed_forward_out = FeedForward(config)
        self.layer_norm_att = nn.LayerNorm(config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x_NSD: Tensor, bias_NHSS: Tensor) -> Tensor:
        x_NSD = x_NSD + 0.5 * self.feed_forward_in(x_NSD)
        x_NSD = x_NSD + self.self_attn(self.layer_norm_att(x_NSD), bias_NHSS)
        x_NSD = x_NSD + self.conv(x_NSD)
        x_NSD = x_NSD + 0.5 * self.feed_forward_out(x_NSD)
        return self.layer_norm(x_NSD)


class Encoder(nn.Module):
    """Log-mel frames of clips → rows of width D."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_embedding = Normaliser(config)
        self.embed = Subsampling(config)
        self.relative_attention_bias_layer = RelativeBias(config)
        self.encoders = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Each clip [T, M] → [S, D] with S = ceil(T / 8).

        Raises:
            PhikitError: a clip has no frames, or frames of another width.
        """
        windows: list[Tensor] = []
        counts: list[int] = []  # windows of each clip
        sizes: list[int] = []
        for number, clip_TM in enumerate(clips, 1):
            self._check(clip_TM, number)
            rows_SD = self.embed(self.encoder_embedding(clip_TM))
            sizes.append(len(rows_SD))
            if len(rows_SD) > self.config.window:
                rows_SD = F.pad(rows_SD, (0, 0, 0, -len(rows_SD) % self.config.window))
            cut = rows_SD.split(self.config.window)
            windows += cut
            counts.append(len(cut))
        encoded = iter(self._blocks(windows))
        return [
            torch.cat([next(encoded) for _ in range(count)])[:size]
            for count, size in zip(counts, sizes, strict=True)
        ]

    def _blocks(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Windows [S, D] of any lengths through the blocks, several of about one length at once."""
        done: dict[int, Tensor] = {}
        for group in _groups([len(rows_SD) for rows_SD in windows]):
            lengths = [len(windows[i]) for i in group]
            x_NSD = nn.utils.rnn.pad_sequence([windows[i] for i in group], batch_first=True)
            bias_NHSS = self._bias(lengths, x_NSD)
            for block in self.encoders:
                x_NSD = block(x_NSD, bias_NHSS)
            for i, x_SD in zip(group, x_NSD, strict=True):
                done[i] = x_SD[: len(windows[i])]
        return [done[i] for i in range(len(windows))]

    def _bias(self, lengths: Sequence[int], x_NSD: Tensor) -> Tensor:
        """The relative bias, and -inf where a shorter window ends: [1 or N, H, S, S]."""
        longest = max(lengths)
        bias_1HSS = self.relative_attention_bias_layer(longest)[None]
        if min(lengths) == longest:
            return bias_1HSS
        index_S = torch.arange(longest, device=x_NSD.device)
        beyond_NS = index_S >= torch.tensor(lengths, device=x_NSD.device)[:, None]
        return bias_1HSS.masked_fill(beyond_NS[:, None, None], -math.inf)

    def _check(self, clip_TM: Tensor, number: int) -> None:
        shape = tuple(clip_TM.shape)
        if len(shape) != 2 or shape[1] != self.config.mels or not shape[0]:
            raise PhikitError(
                f"clip {number} has the shape {shape}",
                f"give frames × {self.config.mels} features, as `log_mel` makes them",
            )


class AudioEmbedding(nn.Module):
    """Log-mel frames of clips → rows that stand in a prompt for the clip.

    There are two projectors. "vision" is the one used when the prompt also holds an image, and
    has been trained with the vision adapter; "speech" the one for sound alone.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        d, out = config.hidden_size, config.out_size
        self.audio_projection = nn.ModuleDict(
            {
                mode: nn.Sequential(nn.Linear(d, out), nn.GELU(), nn.Linear(out, out))
                for mode in ("speech", "vision")
            }
        )

    def forward(self, clips: Sequence[Tensor], modes: Sequence[str]) -> list[Tensor]:
        """Each clip [T, M] through the projector of its mode → [S, L], S = ceil(T / 8)."""
        encoded = self.encoder([clip_TM.to(self.encoder.embed.out.weight) for clip_TM in clips])
        return [
            self.audio_projection[mode](rows_SD)
            for rows_SD, mode in zip(encoded, modes, strict=True)
        ]


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Which windows go through the blocks together: so that little of a batch is padding."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if (
            not groups
            or len(groups[-1]) == _TOGETHER
            or lengths[i] > _PADDED * lengths[groups[-1][0]] + REDUCTION
        ):
            groups.append([])
        groups[-1].append(i)
    return groups


def rows_of(frames: int) -> int:
    """How many rows (tokens of a prompt) a clip of so many frames takes."""
    return -(-frames // REDUCTION)
