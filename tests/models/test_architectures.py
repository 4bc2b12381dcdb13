"""The table of architectures: every entry is whole, and a wrong name is answered well."""

import json

import pytest
import torch

import phikit.models
from phikit.errors import PhikitError
from phikit.models import architectures
from phikit.models.architectures import ARCHITECTURES, Architecture, build, part, read_config
from phikit.models.checkpoint import load, load_any, save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.models.family import PHI_4_MINI


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_parts_of_every_entry_exist(name: str) -> None:
    entry = ARCHITECTURES[name]
    for where in (
        entry.read,
        entry.write,
        entry.build,
        *([entry.tensors] if entry.tensors else []),
    ):
        assert callable(part(where)), where


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"architectures": ["Phi3ForCausalML"]}, r"'Phi3ForCausalML' .*\n.*'Phi3ForCausalLM'"),
        ({"architectures": []}, "'architectures' is missing or empty"),
        ({}, "'architectures' is missing or empty"),
        (["Phi3ForCausalLM"], "no JSON object but list"),
    ],
)
def test_a_config_without_a_known_architecture(held, said: str, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(PhikitError, match=said) as e:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(e.value)


class Tiny(torch.nn.Module):
    """A model of another kind: two names for one matrix, a computed buffer, a renamed tensor."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.inner = torch.nn.Linear(3, 3)
        self.twin = torch.nn.Linear(3, 3, bias=False)
        self.twin.weight = self.inner.weight
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def make_buffers(self) -> None:
        self.table = torch.arange(4.0)


def tiny_read(raw, where):
    return PHI_4_MINI.with_context(int(raw["max"]), 1.0)


def tiny_tensors(config, tensors):
    return ((name.removeprefix("old."), t) for name, t in tensors)


def test_an_entry_is_all_it_takes_to_add_a_model(tmp_path, monkeypatch) -> None:
    entry = Architecture(*(f"{__name__}:tiny_read", "-:-", f"{__name__}:Tiny"),
                         tensors=f"{__name__}:tiny_tensors")  # fmt: skip
    monkeypatch.setattr(architectures, "ARCHITECTURES", {"Phi3ForCausalLM": entry})
    (tmp_path / "config.json").write_text('{"architectures": ["Phi3ForCausalLM"], "max": 5}')
    from safetensors.torch import save_file

    weight = torch.arange(9.0).view(3, 3)
    save_file({"old.inner.weight": weight, "old.inner.bias": torch.ones(3)},
              tmp_path / "model.safetensors")  # fmt: skip
    model = load_any(tmp_path)
    assert model.config.max_positions == 5
    assert model.twin.weight is model.inner.weight and torch.equal(model.twin.weight, weight)
    assert torch.equal(model.table, torch.arange(4.0))


def test_the_same_name_gives_the_shape_from_either_package() -> None:
    assert phikit.models.config("phi-4-mini") is phikit.config("phi-4-mini") is PHI_4_MINI
    with pytest.raises(AttributeError):
        _ = phikit.models.nothing
    with torch.device("meta"):
        built = build(PHI_4_MINI)
    assert sum(p.numel() for p in built.parameters()) == PHI_4_MINI.parameters


class Other(torch.nn.Module):
    """A model without weights, which is no dense decoder."""

    def __init__(self, config) -> None:
        super().__init__()


def nothing(config, tensors):
    return iter(())


def test_the_dense_loader_says_what_else_it_found(tmp_path, monkeypatch) -> None:
    save(Decoder(DecoderConfig(8, 4, 6, 1, 2, 1, 2, 16)), tmp_path)
    read = ARCHITECTURES["Phi3ForCausalLM"].read
    other = Architecture(read, "-:-", f"{__name__}:Other", f"{__name__}:nothing")
    monkeypatch.setattr(architectures, "ARCHITECTURES", {"Phi3ForCausalLM": other})
    with pytest.raises(PhikitError, match="holds a Phi3ForCausalLM, where a dense decoder"):
        load(tmp_path)
