"""phi-4-multimodal's tower and image embedding against transformers, same weights, float32."""

import pytest
import torch
from vision_weights import close, randomise

from phikit.errors import PhikitError
from phikit.models.vision.config import SIGLIP_448, VisionConfig
from phikit.models.vision.hd import TRANSFORMERS_NAMES, ImageEmbedding, image_tokens

transformers = pytest.importorskip("transformers")

SMALL = VisionConfig(
    hidden_size=48, intermediate_size=80, layers=4, heads=4, patch_size=14, table_side=8
)
WIDTH = 40


def their_name(name: str) -> str:
    for ours, theirs in TRANSFORMERS_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def pair(config: VisionConfig = SMALL, seed: int = 0):
    """Our embedding and transformers' with the same weights."""
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as reference

    side = config.table_side * config.patch_size
    vision = transformers.Phi4MultimodalVisionConfig(
        hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, image_size=side,
        patch_size=config.patch_size, crop_size=side, image_token_id=7,
    )  # fmt: skip
    both = transformers.Phi4MultimodalConfig(
        vision_config=vision.to_dict(), hidden_size=WIDTH, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, pad_token_id=0, num_hidden_layers=1,
        intermediate_size=16,
    )  # fmt: skip
    both._attn_implementation = both.vision_config._attn_implementation = "eager"
    theirs = reference.Phi4MultimodalImageEmbedding(both).eval()
    ours = ImageEmbedding(config, WIDTH).eval()
    randomise(ours, seed)
    theirs.load_state_dict({their_name(n): p for n, p in ours.state_dict().items()})
    assert theirs.img_processor.config._attn_implementation == "eager"
    return ours, theirs


def images(grids, padding, seed=3, config=SMALL):
    """Crops and masks for images whose last rows and columns of patches are padding."""
    p, side = config.table_side, config.table_side * config.patch_size
    generator = torch.Generator().manual_seed(seed)
    crops, masks = [], []
    for (rows, columns), (below, right) in zip(grids, padding, strict=True):
        valid = torch.zeros(rows * p, columns * p, dtype=torch.bool)
        valid[: rows * p - below, : columns * p - right] = True
        tiles = valid.reshape(rows, p, columns, p).transpose(1, 2).reshape(-1, p, p)
        masks.append(torch.cat((torch.ones(1, p, p, dtype=torch.bool), tiles)))
        crops.append(torch.rand(len(masks[-1]), 3, side, side, generator=generator) * 2 - 1)
    return crops, masks


def their_rows(theirs, crops, masks, grids, tokens, config=SMALL):
    """transformers' rows: it fills images up to equally many crops, and places all rows at once."""
    most = max(map(len, crops))
    side = config.table_side * config.patch_size

    def fill(x, value):
        return torch.cat((x, x.new_full((most - len(x), *x.shape[1:]), value)))

    ids = torch.full((1, sum(tokens)), 7)
    out = theirs(
        ids, torch.zeros(1, sum(tokens), WIDTH), torch.stack([fill(c, 0.0) for c in crops]),
        torch.tensor(grids) * side, torch.stack([fill(m, True) for m in masks]).float(),
    )  # fmt: skip
    return out[0].split(tokens)


CASES = {
    "one crop": ([(1, 1)], [(0, 0)]),
    "no padding": ([(2, 3)], [(0, 0)]),
    "padded below": ([(2, 1)], [(3, 0)]),
    "padded right, to a single column": ([(1, 2)], [(0, 7)]),
    "several": ([(1, 1), (3, 2), (1, 4), (2, 2)], [(5, 0), (2, 0), (0, 1), (0, 0)]),
    "more crops than go through at once": ([(4, 4), (1, 3)], [(1, 0), (0, 6)]),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_rows_of_images(case):
    grids, padding = CASES[case]
    ours, theirs = pair()
    crops, masks = images(grids, padding)
    got = ours(torch.cat(crops), torch.cat(masks), grids)
    tokens = [image_tokens(m, g) for m, g in zip(masks, grids, strict=True)]
    assert [len(rows) for rows in got] == tokens
    for mine, reference in zip(got, their_rows(theirs, crops, masks, grids, tokens), strict=True):
        assert close(mine, reference)


@torch.no_grad()
def test_the_tower_alone():
    """Features of every block and the pooled vector, on crops padded by every amount."""
    ours, theirs = pair(seed=5)
    p = SMALL.table_side
    valid = torch.zeros(p * p, p, p, dtype=torch.bool)
    for n in range(p * p):
        valid[n, : n // p + 1, : n % p + 1] = True
    side = p * SMALL.patch_size
    crops = torch.rand(p * p, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    out = theirs.img_processor(crops, valid, output_hidden_states=True)
    tower = ours.img_processor
    assert close(tower.features(crops, valid), out.hidden_states[-2])
    assert close(tower.pooled(crops, valid), out.pooler_output)
    for block in range(SMALL.layers + 1):
        x = tower.run(tower.embeddings(crops, valid), valid.flatten(1), block)
        assert close(x, out.hidden_states[block]), block


@torch.no_grad()
def test_padding_is_not_seen():
    ours, _ = pair()
    crops, masks = images([(1, 2)], [(0, 4)])
    before = ours(crops[0], masks[0], [(1, 2)])[0]
    changed = crops[0].clone()
    changed[2, :, :, 4 * SMALL.patch_size :] = 9.0  # the right half of the second tile is padding
    assert torch.equal(ours(changed, masks[0], [(1, 2)])[0], before)


def test_gradients():
    grids, padding = [(2, 1), (1, 1)], [(0, 3), (0, 0)]
    ours, theirs = pair()
    crops, masks = images(grids, padding)
    tokens = [image_tokens(m, g) for m, g in zip(masks, grids, strict=True)]
    rows = torch.cat(ours(torch.cat(crops), torch.cat(masks), grids))
    wish = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    (rows * wish).sum().backward()
    (torch.cat(their_rows(theirs, crops, masks, grids, tokens)) * wish).sum().backward()
    found = dict(theirs.named_parameters())
    largest = max(p.grad.abs().max() for p in ours.parameters() if p.grad is not None)
    unused = 0
    for name, p in ours.named_parameters():
        other = found[their_name(name)].grad
        if p.grad is None:  # what comes after the features
            assert any(f in name for f in (".layers.3.", "post_layernorm", ".head."))
            assert other is None or not other.abs().max()
            unused += 1
        else:
            # keys' biases move every score alike, so their gradient is rounding noise
            noise = name.endswith("k_proj.bias") and p.grad.abs().max() < 1e-5 * largest
            assert close(p.grad, other) or noise, name
    assert unused == 16 + 2 + 1 + 4 + 2 + 4


def test_the_published_names_shapes_and_counts():
    """Against transformers' module and the report's figures: 413.3 M, 15.2 M and 13.0 M."""
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as reference

    with torch.device("meta"):
        ours = ImageEmbedding(SIGLIP_448, 3072)
        theirs = reference.Phi4MultimodalImageEmbedding(
            transformers.Phi4MultimodalConfig(hidden_size=3072, num_attention_heads=24)
        )
    shapes = {n: t.shape for n, t in ours.state_dict().items()}
    assert {their_name(n): s for n, s in shapes.items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }
    for name in ("glb_GN", "sub_GN", "img_projection.0.weight", "img_projection.2.bias",
                 "img_processor.embeddings.position_embedding.weight",
                 "img_processor.encoder.layers.26.self_attn.out_proj.bias",
                 "img_processor.head.attention.in_proj_weight"):  # fmt: skip
        assert name in shapes
    assert shapes["glb_GN"] == (1, 1, 1152)
    assert shapes["sub_GN"] == (1, 1, 1, 1152)

    def count(module):
        return sum(p.numel() for p in module.parameters())

    tower = ours.img_processor
    assert count(tower) == SIGLIP_448.parameters
    parts = (count(tower) - count(tower.head), count(tower.head), count(ours.img_projection))
    assert [round(n / 1e6, 1) for n in parts] == [413.3, 15.2, 13.0]
    assert count(ours) == sum(parts) + 2 * 1152


def test_crops_and_grids_must_agree():
    ours, _ = pair()
    crops, masks = images([(1, 1)], [(0, 0)])
    with pytest.raises(PhikitError, match=r"2 crops do not make the grids \[\(1, 2\)\]"):
        ours(crops[0], masks[0], [(1, 2)])
