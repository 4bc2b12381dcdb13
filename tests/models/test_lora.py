"""LoRA layers: against the formula, against PEFT, several adapters, merging, routes."""

from threading import Thread

import pytest
import torch
from torch import nn

from phikit.errors import PhikitError
from phikit.models import lora
from phikit.models.lora import LoraSpec

SPEC = LoraSpec(rank=3, alpha=6, layers=r"layers\.\d\.proj")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.ModuleList(
        nn.ModuleDict({"proj": nn.Linear(8, 8), "other": nn.Linear(8, 8)}) for _ in range(2)
    )

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer["other"](torch.tanh(layer["proj"](x)))
            return x

    return Network()


def adapted(*names: str) -> nn.Module:
    model = network()
    for number, name in enumerate(names):
        lora.add(model, name, SPEC)
        generator = torch.Generator().manual_seed(number)
        for _, parameter in lora.parameters(model, name):
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(7))


def test_a_new_adapter_changes_nothing_and_its_names_are_the_published_ones() -> None:
    model, plain = network(), network()
    assert lora.add(model, "vision", SPEC) == ["layers.0.proj", "layers.1.proj"]
    lora.activate(model, "vision")
    assert torch.equal(model(X), plain(X))
    names = [n for n, _ in model.named_parameters() if n.startswith("layers.0.proj")]
    assert names == [
        "layers.0.proj.base_layer.weight", "layers.0.proj.base_layer.bias",
        "layers.0.proj.lora_A.vision.weight", "layers.0.proj.lora_B.vision.weight",
    ]  # fmt: skip
    assert [n for n, _ in lora.parameters(model, "vision")][:2] == names[2:]


def test_the_formula() -> None:
    model = adapted("a")
    layer = model.layers[0]["proj"]
    a, b = layer.lora_A["a"].weight, layer.lora_B["a"].weight
    expected = X @ layer.base_layer.weight.T + layer.base_layer.bias + 2.0 * (X @ a.T) @ b.T
    lora.activate(model, "a")
    torch.testing.assert_close(layer(X), expected)


def test_every_row_goes_its_own_way() -> None:
    model = adapted("vision", "speech")
    names = ["vision", None, "speech", "vision"]
    with lora.route(names):
        mixed = model(X)
    for row, name in enumerate(names):
        lora.activate(model, name)
        torch.testing.assert_close(mixed[row : row + 1], model(X[row : row + 1]))
    lora.activate(model, None)
    assert torch.equal(model(X), network()(X))
    assert (mixed[0] - model(X)[0]).abs().max() > 0.1


def test_a_route_is_a_thread_s_own() -> None:
    model = adapted("a")
    seen = []
    with lora.route(["a"] * 4):
        thread = Thread(target=lambda: seen.append(model(X)))
        thread.start()
        thread.join()
        routed = model(X)
    assert torch.equal(seen[0], network()(X))
    assert not torch.equal(routed, seen[0])


def test_compiled_in_one_graph_unless_routed() -> None:
    """And never one route's graph for another route."""
    model = adapted("a", "b")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for name in ("a", None, "b"):
        lora.activate(model, name)
        torch.testing.assert_close(compiled(X), model(X))
    compiled = torch.compile(model, backend="eager")
    for names in (["a"] * 4, ["b", None, "a", "b"], [None] * 4):
        with lora.route(names):
            torch.testing.assert_close(compiled(X), model(X))
    torch.testing.assert_close(compiled(X), model(X))


def test_merged_weights_do_the_same() -> None:
    model = adapted("a", "b")
    lora.activate(model, "b")
    merged = network(seed=1)
    merged.load_state_dict(dict(lora.plain_tensors(model, "b")))
    torch.testing.assert_close(merged(X), model(X))
    plain = network(seed=1)
    plain.load_state_dict(dict(lora.plain_tensors(model)))
    assert torch.equal(plain(X), network()(X))


def test_dropout_only_while_training() -> None:
    model = network()
    lora.add(model, "a", LoraSpec(rank=3, alpha=6, layers=SPEC.layers, dropout=0.5))
    for _, parameter in lora.parameters(model, "a"):
        nn.init.normal_(parameter)
    lora.activate(model, "a")
    assert not torch.equal(model(X), model(X))
    model.eval()
    assert torch.equal(model(X), model(X))


def test_the_same_as_peft() -> None:
    peft = pytest.importorskip("peft")
    model = adapted("a", "b")
    theirs = network()
    for name in ("a", "b"):
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=SPEC.layers)
        if name == "a":
            wrapped = peft.get_peft_model(theirs, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
    assert set(theirs.state_dict()) == set(model.state_dict())
    theirs.load_state_dict(model.state_dict())
    for name in ("a", "b"):
        wrapped.set_adapter(name)
        lora.activate(model, name)
        torch.testing.assert_close(model(X), theirs(X))


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(PhikitError, match=r"none is named like 'q_proj'(.|\n)*layers\.0\.proj"):
        lora.add(network(), "a", LoraSpec(rank=1, alpha=1, layers="q_proj"))
    with pytest.raises(PhikitError, match="has an adapter 'a' already"):
        lora.add(adapted("a"), "a", SPEC)
    with pytest.raises(PhikitError, match=r"no adapter 'visoin'(.|\n)*'vision'"):
        lora.activate(adapted("vision"), "visoin")
    with pytest.raises(PhikitError, match="3 rows, but there are 4"), lora.route(["a"] * 3):
        adapted("a")(X)
    with pytest.raises(PhikitError, match="there is no adapter 'b' here"), lora.route(["b"] * 4):
        adapted("a")(X)
    with pytest.raises(PhikitError, match="at least 1"):
        LoraSpec(rank=0, alpha=1, layers="")
    with pytest.raises(PhikitError, match="cannot be an adapter's name"):
        lora.add(network(), "a.b", SPEC)


def test_a_second_adapter_never_lands_inside_the_first() -> None:
    model = network()
    every = LoraSpec(rank=2, alpha=2, layers=".*")
    assert lora.add(model, "a", every) == lora.add(model, "b", every)
    assert len(list(lora.lora_layers(model))) == 4
