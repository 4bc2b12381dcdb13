"""phi-4-reasoning-vision's tower against transformers' SigLIP 2, same weights, float32."""

import pytest
import torch
from vision_weights import close, randomise

from phikit.errors import PhikitError
from phikit.models.vision.config import VisionConfig
from phikit.models.vision.naflex import FlexTower

transformers = pytest.importorskip("transformers")

SMALL = VisionConfig(
    hidden_size=48, intermediate_size=80, layers=4, heads=4, patch_size=4, table_side=8
)
GRIDS = {
    "one": [(5, 7)],
    "the table's own shape": [(8, 8)],
    "ragged": [(1, 1), (12, 3), (2, 17), (8, 8), (1, 30), (5, 5)],
    "larger than the table": [(20, 24), (33, 9)],
}


def pair(config=SMALL, seed=0):
    theirs = transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(
            hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers, num_attention_heads=config.heads,
            patch_size=config.patch_size, num_patches=config.table_side**2,
            attn_implementation="eager", vision_use_head=config.pooling_head,
        )
    ).eval()  # fmt: skip
    ours = FlexTower(config).eval()
    randomise(ours, seed)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def patches(grids, config=SMALL, spare=0, seed=1):
    """Random patches, with rubbish where images are shorter than the longest."""
    counts = [r * c for r, c in grids]
    shape = (len(grids), max(counts) + spare, config.patch_values)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    valid = torch.arange(shape[1]) < torch.tensor(counts)[:, None]
    return values, valid


@torch.no_grad()
@pytest.mark.parametrize("spare", [0, 11])
@pytest.mark.parametrize("case", GRIDS)
def test_features(case, spare):
    grids = GRIDS[case]
    ours, theirs = pair()
    values, valid = patches(grids, spare=spare)
    out = theirs(values, valid.long(), torch.tensor(grids), output_hidden_states=True)
    got = ours.features(values, valid, grids)
    for n, (r, c) in enumerate(grids):
        assert got[n].shape == (r * c, SMALL.hidden_size)
        assert close(got[n], out.hidden_states[-2][n, : r * c])
    assert close(ours.pooled(values, valid, grids), out.pooler_output)


@torch.no_grad()
def test_what_fills_up_is_not_seen():
    grids = [(2, 3), (4, 4)]
    ours, _ = pair()
    values, valid = patches(grids)
    before = ours.features(values, valid, grids)
    values[0, 6:] = 1e3
    after = ours.features(values, valid, grids)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    alone = ours.features(values[:1, :6], valid[:1, :6], grids[:1])
    assert close(alone[0], before[0])


def test_gradients():
    grids = [(3, 5), (6, 2)]
    ours, theirs = pair(seed=2)
    values, valid = patches(grids)
    wish = torch.randn(15 + 12, SMALL.hidden_size, generator=torch.Generator().manual_seed(4))
    (torch.cat(ours.features(values, valid, grids)) * wish).sum().backward()
    out = theirs(values, valid.long(), torch.tensor(grids), output_hidden_states=True)
    rows = torch.cat([out.hidden_states[-2][0, :15], out.hidden_states[-2][1, :12]])
    (rows * wish).sum().backward()
    found = dict(theirs.named_parameters())
    compared = 0
    for name, p in ours.named_parameters():
        if p.grad is not None and not name.endswith("k_proj.bias"):  # theirs is rounding noise
            assert close(p.grad, found[name].grad), name
            compared += 1
    assert compared == 3 + 3 * 15  # the embeddings and all blocks but the last


@torch.no_grad()
def test_bfloat16_positions_are_resized_in_float32():
    """As the reference does on a CPU, and here everywhere."""
    ours, theirs = pair()
    table = theirs.bfloat16().embeddings.position_embedding.weight
    expected = theirs.embeddings.resize_positional_embeddings(
        table.reshape(8, 8, -1), torch.tensor([[5, 11]]), 55
    )
    got = ours.bfloat16().embeddings.positions(5, 11)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected[0])


def test_patches_and_grids_must_agree():
    ours, _ = pair()
    values, valid = patches([(2, 3)])
    with pytest.raises(PhikitError, match=r"images of \[6\] patches do not make .*\[\(2, 2\)\]"):
        ours.features(values, valid, [(2, 2)])
