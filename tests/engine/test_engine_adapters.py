"""Adapters chosen per request: each row's tokens are those of the model with its adapter merged."""

from pathlib import Path

import pytest
import torch
from engine_fixtures import PLAIN, make

from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.native.runner import NativeRunner
from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme
from phikit.engine.scheduler import Scheduler
from phikit.errors import PhikitError
from phikit.models import lora
from phikit.models.decoder import Decoder
from phikit.models.lora_spec import LoraSpec
from phikit.train import adapters as files

SPECS = {
    "all": LoraSpec(4, 8, r".*(qkv|o|gate_up|down)_proj"),
    "some": LoraSpec(2, 2, r".*o_proj"),
}
PROMPT = (5, 9, 1, 7, 7, 2, 30, 31, 12)


def with_adapters(dtype: torch.dtype = torch.float32) -> Decoder:
    model = make(PLAIN, sharpness=3.0).to(dtype)
    generator = torch.Generator().manual_seed(5)
    for name, spec in SPECS.items():
        lora.add(model, name, spec)
        for _, parameter in lora.parameters(model, name):
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def alone(model: Decoder, name: str) -> Decoder:
    """The plain model that the adapter makes."""
    plain = Decoder(model.config).to(model.model.embed_tokens.weight.dtype)
    plain.load_state_dict(dict(lora.plain_tensors(model, name or None)))
    return plain.eval()


def requests() -> list[Request]:
    names = ("", "all", "some", "all", "")
    return [
        Request(PROMPT[: 9 - i // 4], Sampling(max_tokens=12), n=4, seed=i, adapter=name)
        for i, name in enumerate(names)
    ]


def test_every_request_gets_its_adapter() -> None:
    model, asked = with_adapters(), requests()
    mixed = collect(LocalEngine(model), asked)
    for request, got in zip(asked, mixed, strict=True):
        bare = Request(request.prompt_ids, request.sampling, request.n, request.seed)
        expected = collect(LocalEngine(alone(model, request.adapter)), [bare])[0]
        assert [r.completion_ids for r in got] == [r.completion_ids for r in expected]
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert len({got[0].completion_ids for got in mixed[:3]}) == 3, "the adapters do nothing"


@pytest.mark.parametrize("rows", [3, 24])
def test_the_kernels_know_which_rows_have_one(rows: int) -> None:
    """bfloat16, through C, with few rows and with many; float32 says what is right."""
    model, exact = with_adapters(torch.bfloat16), with_adapters()
    names = ["", "all", "some"]
    asked = [
        Request(PROMPT, Sampling(temperature=0, max_tokens=1, top_logprobs=97), adapter=name)
        for name in names * (rows // 3)
    ]

    def distributions(m: Decoder) -> torch.Tensor:
        runner = NativeRunner(m)
        assert (runner._kernels is not None) == (m is model)
        scheduler = Scheduler(runner, max_rows=rows)
        for request in asked:
            scheduler.submit(request)
        tokens = sorted(scheduler.step().tokens(), key=lambda t: t.ticket.number)
        lines = [[raw for _, _, raw in sorted(t.top)] for t in tokens]
        return torch.tensor(lines).view(-1, 3, 97)

    mine, right = distributions(model), distributions(exact)
    between_copies = float((mine - mine[:1]).abs().max())
    # past 16 rows the kernels may round a row by its place: a step of bfloat16 at the most
    assert between_copies <= (0 if rows <= 16 else 0.04)
    scatter = (mine - right).abs().mean((0, 2))
    between = (right[:, 0] - right[:, 1]).abs().mean(), (right[:, 0] - right[:, 2]).abs().mean()
    assert scatter.max() < 0.15 * min(between)


def test_what_is_cached_belongs_to_its_adapter() -> None:
    runner = NativeRunner(with_adapters(), block_size=4)
    scheduler = Scheduler(runner, max_rows=4)
    for name, prefilled in (("all", 8), ("", 16), ("all", 16), ("some", 24)):
        scheduler.submit(Request(PROMPT, Sampling(temperature=0, max_tokens=2), adapter=name))
        while scheduler.busy:
            scheduler.step()
        assert scheduler.stats().prefilled == prefilled


def test_the_active_one_serves_those_that_name_none() -> None:
    model = with_adapters()
    named = collect(LocalEngine(model), [Request(PROMPT, Sampling(), n=3, adapter="some")])
    lora.activate(model, "some")
    assert collect(LocalEngine(model), [Request(PROMPT, Sampling(), n=3)]) == named


def test_an_unknown_one_is_refused_by_name() -> None:
    with pytest.raises(PhikitError, match=r"no adapter 'al'(.|\n)*'all'"):
        collect(LocalEngine(with_adapters()), [Request(PROMPT, Sampling(), adapter="al")])
    with pytest.raises(PhikitError, match=r"no adapter 'al'(.|\n)*none at all"):
        collect(LocalEngine(make(PLAIN)), [Request(PROMPT, Sampling(), adapter="al")])


def test_from_files_over_quantised_weights(tmp_path: Path) -> None:
    """What PEFT's layout holds goes beside packed weights as beside the dense ones."""
    model = with_adapters(torch.bfloat16)
    files.save(model, "all", tmp_path / "all")
    quantised = make(PLAIN, sharpness=3.0).to(torch.bfloat16)
    for layer in quantised.model.layers:
        for owner, name in (("self_attn", "qkv_proj"), ("self_attn", "o_proj"),
                            ("mlp", "gate_up_proj")):  # fmt: skip
            parent = layer.get_submodule(owner)
            weight = parent.get_submodule(name).get_parameter("weight")
            setattr(parent, name, QuantLinear.of(weight.detach(), Scheme("int8", 0)))
    files.load(quantised, tmp_path / "all", "mine")
    sampling = Sampling(temperature=0, max_tokens=1)
    asked = [Request(PROMPT[:k], sampling, adapter="mine") for k in range(2, 9)]
    mine = collect(LocalEngine(quantised), asked)
    theirs = collect(LocalEngine(model), [
        Request(r.prompt_ids, sampling, adapter="all") for r in asked
    ])  # fmt: skip
    same = sum(
        a[0].completion_ids == b[0].completion_ids for a, b in zip(mine, theirs, strict=True)
    )
    assert same >= 6
    assert mine != collect(LocalEngine(quantised), [Request(r.prompt_ids, sampling) for r in asked])
