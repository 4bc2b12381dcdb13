"""Models that exercise the vector code, requests of all kinds, and crowds of them."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from engine_fixtures import CONFIGS, make

from phikit.engine.base import Request, Sampling
from phikit.engine.native.build import Compiler
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme
from phikit.engine.samples import Events, Ticket
from phikit.engine.scheduler import Scheduler
from phikit.models.decoder import Decoder
from phikit.records import Rollout

COMPILERS = {
    "native": Compiler(), "no tiles": Compiler(tiles=False), "portable": Compiler(portable=True),
    "torch": Compiler("no-compiler"),
}  # fmt: skip
WIDE = {  # attention and products by their vector code
    "even": {
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 32,
        "hidden_size": 96,
        "intermediate_size": 192,
    },
    "odd": {"heads": 4, "kv_heads": 1, "head_dim": 24, "hidden_size": 72, "intermediate_size": 160},
}
WORDS = [tuple(range(1, 40)), (*range(1, 18), 50, 51), (1, 2, 3, 4), (30,)]


def model_of(kind: str, shape: str, name: str = "phi") -> Decoder:
    config = replace(CONFIGS[name], **WIDE[shape], vocab_size=301)
    if config.long_rope is not None:
        half = config.rotary_dim // 2
        factors = {"short_factor": (1.1,) * half, "long_factor": (2.0,) * half}
        config = replace(config, long_rope=replace(config.long_rope, **factors))
    model = make(config, sharpness=3.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.4)
    if kind == "float32":
        return model
    model = model.to(torch.bfloat16)
    if kind.startswith("int"):
        scheme = Scheme(kind, 0 if kind == "int8" else 32)
        for layer in model.model.layers:
            for owner, leaf in (("self_attn", "qkv_proj"), ("mlp", "gate_up_proj"),
                                ("mlp", "down_proj")):  # fmt: skip
                parent = layer.get_submodule(owner)
                weight = parent.get_submodule(leaf).get_parameter("weight").detach()
                if scheme.fits(weight.shape[1]):
                    setattr(parent, leaf, QuantLinear.of(weight, scheme))
    return model


def request_of(draw: random.Random) -> Request:
    prompt = list(draw.choice(WORDS)) + draw.choices(range(60, 64), k=draw.randint(0, 12))
    sampling = draw.choice([
        Sampling(), Sampling(temperature=0.7, top_p=0.9), Sampling(temperature=0),
        Sampling(top_k=5, min_p=0.01, top_logprobs=3), Sampling(frequency_penalty=0.5),
    ])  # fmt: skip
    sampling = replace(sampling, max_tokens=draw.randint(1, 10))
    return Request(tuple(prompt), sampling, n=draw.randint(1, 4), seed=draw.randint(0, 9))


class Crowd:
    """Requests that come to a scheduler at any time, of which some are dropped; what came of them.

    Args:
        draw: decides; without it all come at once and none is dropped.
        drops: the chance of dropping one, in each step.

    Attributes:
        found: the finished samples, by their ticket's number and their own; events: of each step.
        cancelled: indices of requests that were dropped, perhaps with samples found before.
    """

    def __init__(self, scheduler: Scheduler, todo: Sequence[Request],
                 draw: random.Random | None, drops: float = 0.1) -> None:  # fmt: skip
        self.tickets: dict[int, Ticket] = {}
        self.cancelled: set[int] = set()
        self.found: dict[tuple[int, int], Rollout] = {}
        self.events: list[Events] = []
        left = list(enumerate(todo))
        while left or scheduler.busy:
            while left and (draw is None or draw.random() < 0.5):
                index, request = left.pop(0)
                self.tickets[index] = scheduler.submit(request)
            if draw and self.tickets and draw.random() < drops:
                index = draw.choice(sorted(self.tickets))
                if self.tickets[index].left:
                    scheduler.cancel(self.tickets[index])
                    self.cancelled.add(index)
            self.events.append(scheduler.step())
            for done in self.events[-1].finished:
                self.found[done.ticket.number, done.sample] = done.rollout

    def rollouts(self, index: int) -> list[Rollout]:
        """All samples of a request that was not cancelled."""
        ticket = self.tickets[index]
        return [self.found[ticket.number, i] for i in range(ticket.request.n)]
