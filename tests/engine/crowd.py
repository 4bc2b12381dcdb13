"""Models that exercise the vector code, and requests of all kinds."""

import random
from dataclasses import replace

import torch
from engine_fixtures import CONFIGS, make

from phikit.engine.base import Request, Sampling
from phikit.engine.native.build import Compiler
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme
from phikit.models.decoder import Decoder

COMPILERS = {
    "native": Compiler(), "portable": Compiler(portable=True), "torch": Compiler("no-compiler"),
}  # fmt: skip
WIDE = {  # attention and products by their vector code
    "even": {"heads": 6, "kv_heads": 2, "head_dim": 32, "hidden_size": 96},
    "odd": {"heads": 4, "kv_heads": 1, "head_dim": 24, "hidden_size": 72},
}
WORDS = [tuple(range(1, 40)), (*range(1, 18), 50, 51), (1, 2, 3, 4), (30,)]


def model_of(kind: str, shape: str, name: str = "phi") -> Decoder:
    config = replace(CONFIGS[name], **WIDE[shape], intermediate_size=160, vocab_size=301)
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
