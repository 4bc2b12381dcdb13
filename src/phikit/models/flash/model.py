"""Phi-4-mini-flash-reasoning: SambaY with differential attention.

Shapes: B rows, L positions, N rows of a step, D model width, V vocabulary, I Mamba's channels, E
key-value heads, P pairs of them, W window, K head size.

Module and parameter names are those of the published checkpoint. Linear layers are called as
modules, so they may be replaced by quantised ones (`dt_proj`, `conv1d` and the norms may not: their
weights are used directly). Sequences without a cache go through `hidden`; with one, through
`prefill` and `step`, whose results are the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from phikit.errors import PhikitError
from phikit.models.flash.attention import attend, attend_step, blocks
from phikit.models.flash.config import FlashConfig, Kind
from phikit.models.flash.layers import GMU, Attention, Difference, Layer, Mamba, normed
from phikit.models.flash.state import FlashState


class Backbone(nn.Module):
    """Everything below the head."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


class Flash(nn.Module):
    """A SambaY decoder. Calling it gives logits; `hidden` the states below the head."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Matrices Normal(0, init_std), zero biases, ones for norms; Mamba and λ in their own way.

        Mamba (Gu and Dao 2023, section 3.6): A = -1 ... -S for every channel, D = 1, time steps
        spread evenly in logarithm over 0.001 ... 0.1, convolutions uniform within 1 / sqrt(taps).
        λ vectors: Normal(0, 0.1).
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, self.config.init_std, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        for part in self.modules():
            if isinstance(part, Mamba):
                _init_mamba(part, self.config, generator)
            elif isinstance(part, Difference):
                for vector in (part.lambda_q1, part.lambda_k1, part.lambda_q2, part.lambda_k2):
                    vector.normal_(0.0, 0.1, generator=generator)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of what flows between the layers."""
        return self.model.final_layernorm.weight.dtype

    def layers(self) -> list[Layer]:
        """The layers, in order."""
        return list(self.model.layers)  # type: ignore[arg-type]

    # --- whole sequences -------------------------------------------------------------------------

    def forward(self, ids_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
        """Logits [B, L, V]; arguments as for `hidden`."""
        return self.lm_head(self.hidden(ids_BL, segments_BL))

    def hidden(self, ids_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
        """Final hidden states [B, L, D], after the last norm.

        Args:
            segments_BL: where rows are packed: the number of each position's document; documents
                are contiguous. No position sees, remembers or convolves another document.
        """
        length = ids_BL.shape[1]
        last_BL = torch.arange(length, device=ids_BL.device)[None]
        first_BL, age_BL = torch.zeros_like(last_BL), None
        if segments_BL is not None:
            first_BL = _beginnings(segments_BL)
            age_BL = last_BL - first_BL
        near = blocks(torch.maximum(first_BL, last_BL - self.config.sliding_window + 1), last_BL)
        all_ = blocks(first_BL, last_BL)
        x_BLD = self.model.embed_tokens(ids_BL)
        memory_BLI = k_BELK = v_BPLV = x_BLD  # set by their layers before they are read
        for layer in self.layers():
            inner, mixer = layer.normed(x_BLD), layer.attn
            if isinstance(mixer, Mamba):
                mixed, memory_BLI = mixer(inner, age_BL)
            elif isinstance(mixer, GMU):
                mixed = mixer(inner, memory_BLI)
            elif mixer.cross:
                mixed = mixer.finish(attend(mixer.queries(inner), k_BELK, v_BPLV, all_))
            else:
                q_BLD, k_BELK, v_BPLV = mixer.project(inner)
                cut = near if layer.kind is Kind.WINDOW else all_
                mixed = mixer.finish(attend(mixer.split(q_BLD), k_BELK, v_BPLV, cut))
            x_BLD = layer.rest(x_BLD, mixed)
        return normed(self.model.final_layernorm, x_BLD)

    # --- with a cache ----------------------------------------------------------------------------

    def new_state(self, rows: int = 0) -> FlashState:
        """A state of this many empty rows, in the model's precision, where the model is."""
        state = FlashState(self.config, self.dtype, self.model.embed_tokens.weight.device)
        state.add(rows)
        return state

    @torch.no_grad()
    def prefill(
        self, ids_BL: Tensor, state: FlashState, counts_B: Tensor | None = None,
        rows_B: Tensor | None = None, logits: bool = True,
    ) -> Tensor | None:  # fmt: skip
        """Appends tokens to rows of a state, and gives the logits [B, V] after each row's last.

        A long prompt may come in several calls. All layers above the one of full attention, and
        that layer but for its keys and values, are computed for the last token only.

        Args:
            counts_B: how many of a row's ids are its own; the rest is padding. All when left out.
            rows_B: which rows of the state; 0 ... B - 1 when left out.
            logits: False for all parts of a prompt but the last: then nothing is returned.

        Raises:
            PhikitError: rows that the state does not have, empty rows, or too many positions.
        """
        b, length = ids_BL.shape
        counts = torch.full((b,), length) if counts_B is None else counts_B.cpu()
        rows = torch.arange(b) if rows_B is None else rows_B.cpu()
        self._check(state, rows, counts, length)
        before, device = state.lengths[rows], ids_BL.device
        after = before + counts
        state.full.reserve(state.rows, int(after.max()))
        ragged = bool((counts < length).any())
        part = _Part(
            rows=rows.to(device), before=before.to(device), counts=counts.to(device),
            after=after, fresh=not before.any(), length=length,
            valid=torch.arange(length, device=device) < counts.to(device)[:, None]
            if ragged else None,
        )  # fmt: skip
        x_BLD, memory_BLI = self._lower_prefill(ids_BL, state, part)
        state.lengths[rows] = after
        return self._upper(x_BLD, memory_BLI, state, part, logits)

    @torch.no_grad()
    def step(self, ids_N: Tensor, state: FlashState) -> Tensor:
        """Appends one token to each of the state's rows; logits [N, V].

        Raises:
            PhikitError: the state has another number of rows, or a row is full.
        """
        n, device = len(ids_N), ids_N.device
        rows, counts = torch.arange(n), torch.ones(n, dtype=torch.int64)
        if n != state.rows:
            raise PhikitError(f"a step of {n} tokens for a state of {state.rows} rows")
        self._check(state, rows, counts, 1)
        before = state.lengths.clone()
        state.full.reserve(n, int(before.max()) + 1)
        part = _Part(
            rows=rows.to(device), before=before.to(device), counts=counts.to(device),
            after=before + 1, fresh=False, length=1, valid=None,
        )  # fmt: skip
        x_N1D, memory_N1I = self._lower_step(ids_N, state, part)
        state.lengths += 1
        out = self._upper(x_N1D, memory_N1I, state, part, logits=True, all_rows=True)
        assert out is not None
        return out

    def _check(self, state: FlashState, rows: Tensor, counts: Tensor, length: int) -> None:
        if len(rows) == 0 or int(rows.max()) >= state.rows or len(rows.unique()) < len(rows):
            raise PhikitError(
                f"rows {rows.tolist()} are not different rows of a state of {state.rows}",
                "open them with state.add",
            )
        if int(counts.min()) < 1 or int(counts.max()) > length:
            raise PhikitError(f"rows of {counts.tolist()} tokens in ids of {length}")
        longest = int((state.lengths[rows] + counts).max())
        if longest > self.config.max_positions:
            raise PhikitError(
                f"a row would have {longest} positions; the context is {self.config.max_positions}"
            )

    def _lower_step(self, ids_N: Tensor, state: FlashState, part: _Part) -> tuple[Tensor, Tensor]:
        slots, n, window = state.slots, len(ids_N), self.config.sliding_window
        slot_N, held_N = part.before % window, part.after.clamp(max=window)
        x_N1D = self.model.embed_tokens(ids_N[:, None])
        memory_N1I = x_N1D
        for index, layer in enumerate(self.layers()[: self.config.full_layer]):
            inner, mixer, at = layer.normed(x_N1D), layer.attn, index // 2
            if isinstance(mixer, Mamba):
                mixed, memory_N1I = mixer.step(inner, slots.conv[at, :n], slots.ssm[at, :n])
            elif isinstance(mixer, Attention):
                q_N1D, k_NE1K, v_NP1V = mixer.project(inner)
                k_NEWK, v_NPWV = slots.k[at, :n], slots.v[at, :n]
                k_NEWK[part.rows, :, slot_N] = k_NE1K.squeeze(2)
                v_NPWV[part.rows, :, slot_N] = v_NP1V.squeeze(2)
                q_NERK = mixer.split(q_N1D).squeeze(3)
                maps = attend_step(q_NERK, [(k_NEWK, v_NPWV)], held_N)
                mixed = mixer.finish(maps[:, :, :, :, None])
            x_N1D = layer.rest(x_N1D, mixed)
        return x_N1D, memory_N1I

    def _lower_prefill(
        self, ids_BL: Tensor, state: FlashState, part: _Part
    ) -> tuple[Tensor, Tensor]:
        slots, rows = state.slots, part.rows
        cut = blocks(*part.window(self.config.sliding_window))
        x_BLD = self.model.embed_tokens(ids_BL)
        memory_BLI = x_BLD
        for index, layer in enumerate(self.layers()[: self.config.full_layer]):
            inner, mixer, at = layer.normed(x_BLD), layer.attn, index // 2
            if isinstance(mixer, Mamba):
                mixed, memory_BLI, tail, end = mixer.continued(
                    inner, slots.conv[at, rows], slots.ssm[at, rows], part.valid, part.counts
                )
                slots.conv[at, rows], slots.ssm[at, rows] = tail, end
            elif isinstance(mixer, Attention):
                q_BLD, k_BELK, v_BPLV = mixer.project(inner)
                k_BETK = part.turn(slots.k[at], k_BELK)
                v_BPTV = part.turn(slots.v[at], v_BPLV)
                mixed = mixer.finish(attend(mixer.split(q_BLD), k_BETK, v_BPTV, cut))
            x_BLD = layer.rest(x_BLD, mixed)
        return x_BLD, memory_BLI

    def _upper(
        self, x_BLD: Tensor, memory_BLI: Tensor, state: FlashState, part: _Part, logits: bool,
        all_rows: bool = False,
    ) -> Tensor | None:  # fmt: skip
        """From the layer of full attention on: its keys and values, then each row's last token."""
        layers = self.layers()[self.config.full_layer :]
        full = layers[0].attn
        assert isinstance(full, Attention)
        position_BL = part.before[:, None] + torch.arange(part.length, device=x_BLD.device)
        q_BLD, k_BELK, v_BPLV = full.project(layers[0].normed(x_BLD))
        state.full.write(part.rows, position_BL, part.valid, k_BELK, v_BPLV)
        if not logits:
            return None
        if part.length > 1:
            last = (torch.arange(len(x_BLD), device=x_BLD.device), part.counts - 1)
            x_BLD, memory_BLI, q_BLD = (t[last][:, None] for t in (x_BLD, memory_BLI, q_BLD))
        rows_B = None if all_rows else part.rows
        q_BER1K = full.split(q_BLD)
        for layer in layers:
            mixer = layer.attn
            if isinstance(mixer, GMU):
                mixed = mixer(layer.normed(x_BLD), memory_BLI)
            elif isinstance(mixer, Attention):
                if mixer.cross:
                    q_BER1K = mixer.queries(layer.normed(x_BLD))
                maps = state.full.attend(rows_B, q_BER1K.squeeze(3), part.after)
                mixed = mixer.finish(maps[:, :, :, :, None])
            x_BLD = layer.rest(x_BLD, mixed)
        return self.lm_head(normed(self.model.final_layernorm, x_BLD)).squeeze(1)


class _Part:
    """New positions of some rows: what prefill and step tell their layers."""

    def __init__(
        self, rows: Tensor, before: Tensor, counts: Tensor, after: Tensor, fresh: bool, length: int,
        valid: Tensor | None,
    ) -> None:  # fmt: skip
        self.rows, self.before, self.counts = rows, before, counts
        self.after = after  # on the CPU
        self.fresh, self.length, self.valid = fresh, length, valid

    def window(self, size: int) -> tuple[Tensor, Tensor]:
        """The first and last key that each new position sees of what `turn` gives."""
        new = torch.arange(self.length, device=self.rows.device)[None]
        if self.fresh:
            return (new - size + 1).clamp(min=0), new
        first_BL = torch.maximum(new + 1, (size - self.before)[:, None])
        return first_BL, (new + size).expand_as(first_BL)

    def turn(self, ring_NEWK: Tensor, new_BELK: Tensor) -> Tensor:
        """The ring's keys in order with the new ones behind them; the ring is brought forward."""
        size, device = ring_NEWK.shape[2], self.rows.device
        slot_W = torch.arange(size, device=device)
        all_BETK = new_BELK
        if not self.fresh:
            order_BW = (self.before[:, None] + slot_W) % size
            all_BETK = torch.cat((_pick(ring_NEWK[self.rows], order_BW), new_BELK), dim=2)
        # the latest position that belongs into each slot, and where it is among all of them
        newest_B1 = (self.before + self.counts - 1)[:, None]
        position_BW = newest_B1 - (newest_B1 - slot_W) % size
        at_BW = position_BW - self.before[:, None] + (0 if self.fresh else size)
        ring_NEWK[self.rows] = _pick(all_BETK, at_BW.clamp(min=0))
        return all_BETK


def _pick(x_BETK: Tensor, at_BW: Tensor) -> Tensor:
    """[B, E, W, K]: other positions for each row."""
    b, e, _, k = x_BETK.shape
    return x_BETK.gather(2, at_BW[:, None, :, None].expand(b, e, at_BW.shape[1], k))


def _beginnings(segments_BL: Tensor) -> Tensor:
    """Where each position's document begins."""
    index_BL = torch.arange(segments_BL.shape[1], device=segments_BL.device).expand_as(segments_BL)
    new_BL = torch.ones_like(segments_BL, dtype=torch.bool)
    new_BL[:, 1:] = segments_BL[:, 1:] != segments_BL[:, :-1]
    return torch.where(new_BL, index_BL, 0).cummax(1).values


def _init_mamba(part: Mamba, config: FlashConfig, generator: torch.Generator) -> None:
    rates_S = torch.arange(1, config.state_size + 1, device=part.A_log.device).float()
    part.A_log.copy_(rates_S.log().expand_as(part.A_log))
    bound = 1 / math.sqrt(config.conv_width)
    part.conv1d.weight.uniform_(-bound, bound, generator=generator)
    bound = 1 / math.sqrt(config.dt_rank)
    part.dt_proj.weight.uniform_(-bound, bound, generator=generator)
    low, high = math.log(0.001), math.log(0.1)
    wanted_I = torch.empty_like(part.dt_proj.bias, dtype=torch.float32)
    wanted_I.uniform_(low, high, generator=generator).exp_()
    # the inverse of softplus
    part.dt_proj.bias.copy_(wanted_I + torch.log(-torch.expm1(-wanted_I)))
