"""The settings that training stages share, and the shape of a new model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from phikit.models.decoder_config import DecoderConfig
from phikit.stage import Config
from phikit.train import schedules
from phikit.train.schedules import Schedule
from phikit.train.trackers import Tracker

if TYPE_CHECKING:
    from phikit.chat.tokenizer import Tokenizer

_DECAY_SHARE = 0.2
VOCABULARY_MULTIPLE = 64  # rows of the embedding: products like round sizes


DecayRate = Annotated[float, Field(ge=0, lt=1)]


class OptimiserSettings(Config):
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

    kind: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: the layers' matrices are orthogonalised, the rest is AdamW's",
    )
    betas: tuple[DecayRate, DecayRate] = Field(
        default=(0.9, 0.95),
        description="AdamW's decay rates (not published for phi-4; the flash model's)",
    )
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(
        default=0.1, ge=0, description="decoupled, on matrices only (phi-4's pre-training: 0.1)"
    )
    muon_lr: float | None = Field(
        default=None, gt=0, description="peak rate of the matrices under Muon; `lr` when left out"
    )
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="Muon's momentum (Nesterov)")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the whole gradient")

    @model_validator(mode="after")
    def _only_of_muon(self) -> Self:
        if self.kind != "muon" and self.muon_lr is not None:
            raise ValueError("muon_lr is Muon's: add optimiser.kind=muon, or leave it out")
        return self


class LoraSettings(Config):
    """A low-rank adapter that is trained instead of the weights (Hu et al. 2021)."""

    rank: int = Field(default=16, ge=1, description="rank of the adapter (phi-4-multimodal: 256)")
    alpha: float = Field(
        default=32.0, gt=0, description="its changes are scaled by alpha / rank (usually 2)"
    )
    targets: tuple[str, ...] = Field(
        default=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        min_length=1,
        description="the linear layers that get one, by the last part of their names",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapter's input")
    name: str = Field(default="default", pattern=r"^\w+$", description="the adapter's name")


class ParallelSettings(Config):
    """How the processes that torchrun started share the work; together they are all of them."""

    data: int | None = Field(
        default=None, ge=1, description="share the microbatches; what is left when left out"
    )
    tensor: int = Field(default=1, ge=1, description="share the layers' matrices, by heads")
    context: int = Field(default=1, ge=1, description="share a row's tokens, for long ones")


class TrainSettings(Config):
    """What the loop needs to know, whatever is minimised."""

    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    steps: int | None = Field(
        default=None, ge=1, description="number of steps, instead of `epochs`"
    )
    schedule: Schedule = Field(default="linear", description="linear, cosine, wsd or constant")
    warmup: float = Field(
        default=0.05,
        ge=0,
        description="warm-up: a share of the steps when below 1, else a number of steps",
    )
    decay_share: float = Field(
        default=_DECAY_SHARE, gt=0, le=1, description="wsd: share of the steps that decay"
    )
    lr_floor: float = Field(
        default=0.0, ge=0, lt=1, description="the lowest rate, as a share of the peak"
    )
    optimiser: OptimiserSettings = OptimiserSettings()
    lora: LoraSettings | None = Field(
        default=None,
        description="train an adapter (rank, alpha, targets, dropout, name) and freeze the rest; "
        "writes adapter/ as PEFT reads it, and model/ with the adapter merged",
    )
    precision: Literal["bf16", "f32"] = Field(
        default="bf16",
        description="bf16: products in bfloat16 (autocast); weights are always float32",
    )
    save_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="the precision of the model that is written at the end"
    )
    microbatch: int = Field(
        default=0,
        ge=0,
        description="rows computed at once (changes memory, not maths); 0: the whole batch, or "
        "each core's share of a small model's",
    )
    recompute: bool = Field(
        default=False,
        description="recompute activations in the backward pass: less memory, a third slower",
    )
    parallel: ParallelSettings = ParallelSettings()
    compile: bool = Field(
        default=False, description="compile the layers with torch.compile (needs g++)"
    )
    checkpoint_every: int = Field(default=100, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="how many checkpoints are kept")
    checkpoint_in_background: bool = Field(
        default=True,
        description="write a copy of the state while training goes on: quicker, more memory",
    )
    track: tuple[Tracker, ...] = Field(
        default=(), description="show the metrics in tensorboard or trackio too"
    )
    bad_steps: int = Field(
        default=5,
        ge=1,
        description="stop after this many steps in a row with a loss that is not finite",
    )

    @model_validator(mode="after")
    def _has_a_schedule(self) -> Self:
        if self.steps is not None:
            self.check_schedule(self.steps)
        if self.schedule != "wsd" and self.decay_share != _DECAY_SHARE:
            raise ValueError("decay_share is wsd's: add schedule=wsd, or leave it out")
        if self.schedule == "constant" and self.lr_floor:
            raise ValueError("a constant rate falls to no floor: leave lr_floor out")
        return self

    def check_schedule(self, steps: int) -> None:
        """Raises:
        PhikitError: so many steps are too few for the warm-up, or for it and the decay.
        """
        schedules.check(self.schedule, steps, self.warmup, self.decay_share)

    def warmup_steps(self, steps: int) -> int:
        """Steps of warm-up: `warmup` below 1 is a share of all steps, else their number."""
        return schedules.warmup_steps(self.warmup, steps)


class ModelSettings(Config):
    """The shape of a model that is trained from nothing; nano's by default."""

    hidden_size: int = Field(default=128, ge=1, description="model width")
    intermediate_size: int = Field(default=384, ge=1, description="inner width of the MLP")
    layers: int = Field(default=4, ge=1, description="decoder layers")
    heads: int = Field(default=4, ge=1, description="query heads")
    kv_heads: int = Field(default=2, ge=1, description="key-value heads")
    head_dim: int = Field(default=32, ge=2, description="width of a head")
    rope_theta: float = Field(
        default=10_000.0,
        gt=0,
        description="RoPE base (phi-4's pre-training base was not published)",
    )
    rope_fraction: float = Field(
        default=1.0, gt=0, le=1, description="part of each head that is rotated (phi-4-mini: 0.75)"
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon of RMSNorm")
    tied: bool = Field(default=True, description="one matrix for embeddings and head (phi-4: no)")
    init_std: float = Field(
        default=0.02, gt=0, description="standard deviation of the first weights"
    )

    vocabulary: int | None = Field(
        default=None,
        ge=1,
        description="rows of the embedding; what the tokenizer needs if left out",
    )

    def planned(self, vocabulary: int, context: int) -> DecoderConfig:
        """The shape before there is a tokenizer, for about so many different tokens."""
        shape = self.model_dump(exclude={"vocabulary"})
        return DecoderConfig(
            vocab_size=self.vocabulary or vocabulary, max_positions=context, **shape
        )

    def decoder(self, tokenizer: Tokenizer, context: int) -> DecoderConfig:
        """The whole configuration, for a tokenizer and a context length."""
        special = tokenizer.special
        end = special.get("<|endoftext|>")
        rows = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        return DecoderConfig(
            vocab_size=max(rows, self.vocabulary or 0),
            max_positions=context,
            bos_id=end,
            eos_ids=tuple(special[t] for t in ("<|im_end|>", "<|endoftext|>") if t in special),
            pad_id=special.get("<|pad|>", end),
            **self.model_dump(exclude={"vocabulary"}),
        )
