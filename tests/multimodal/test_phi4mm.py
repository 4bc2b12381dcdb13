"""The whole of phi-4-multimodal against transformers, mode by mode."""

import itertools
from typing import Any

import pytest
import torch
from phi4mm_reference import (
    reference_model,
    small_config,
    small_model,
    their_clips,
    their_images,
    their_name,
)

from phikit.errors import PhikitError
from phikit.models import lora
from phikit.models.audio.encoder import rows_of
from phikit.models.multimodal.media import Media
from phikit.models.multimodal.model import Phi4MM
from phikit.models.multimodal.modes import InputMode
from phikit.models.vision.hd import image_tokens


def pictures(*grids: tuple[int, int], seed: int = 0) -> Media:
    """Pictures of random pixels on these grids, the last one padded on the right and below."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(rows * columns + 1 for rows, columns in grids)
    valid = torch.ones(count, 4, 4, dtype=torch.bool)
    rows, columns = grids[-1]
    for tile in range(rows * columns):
        if tile % columns == columns - 1:
            valid[count - rows * columns + tile, :, 2:] = False
    crops = torch.randn(count, 3, 56, 56, generator=generator)
    return Media(crops_NCSS=crops, valid_NPP=valid, grids=grids)


def clip(frames: int = 100, seed: int = 1) -> Media:
    generator = torch.Generator().manual_seed(seed)
    return Media(clips=(torch.randn(frames, 80, generator=generator),))


def both(a: Media, b: Media) -> Media:
    return Media(a.crops_NCSS, a.valid_NPP, a.grids, b.clips)


def vars_of(media: Media) -> tuple[Any, ...]:
    return media.crops_NCSS, media.valid_NPP, media.grids


def sizes(media: Media) -> list[int]:
    """Tokens of each picture, then of each clip."""
    images = []
    if media.valid_NPP is not None:
        valid = media.valid_NPP.split([r * c + 1 for r, c in media.grids])
        images = [image_tokens(v, grid) for v, grid in zip(valid, media.grids, strict=True)]
    return images + [rows_of(len(clip)) for clip in media.clips]


def prompt(media: Media, seed: int = 3) -> list[int]:
    """Words, and between them the placeholder tokens."""
    generator = torch.Generator().manual_seed(seed)
    config = small_config()
    ids: list[int] = []
    for number, size in enumerate(sizes(media)):
        token = config.image_id if number < len(media.grids) else config.audio_id
        ids += [*torch.randint(11, 300, (4,), generator=generator).tolist(), *[token] * size]
    return ids + torch.randint(11, 300, (9,), generator=generator).tolist()


CASES = {
    "text": (Media(), InputMode.LANGUAGE),
    "one picture": (pictures((1, 2)), InputMode.VISION),
    "two pictures": (pictures((2, 1), (1, 2)), InputMode.VISION),
    "one clip": (clip(), InputMode.SPEECH),
    "two clips": (Media(clips=clip().clips + clip(seed=2).clips), InputMode.SPEECH),
    "two of each": (
        Media(*vars_of(pictures((1, 1), (1, 1), seed=4)), clips=clip(60).clips + clip(60, 5).clips),
        InputMode.VISION_SPEECH,
    ),
    "picture and clip": (both(pictures((1, 1)), clip(203)), InputMode.VISION_SPEECH),
}


def inputs(media: Media) -> dict[str, torch.Tensor]:
    theirs = their_images(media) if media.grids else {}
    return theirs | (their_clips(media) if media.clips else {})


def close(a: torch.Tensor, b: torch.Tensor, by: float = 1e-4) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= by * float(b.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_prefill(name: str) -> None:
    media, mode = CASES[name]
    model = small_model()
    ids = torch.tensor([prompt(media)])
    assert model.modes_of(ids) == [mode]
    ours = model(ids, media=media)
    theirs = reference_model(model, mode.adapter)(ids, **inputs(media)).logits
    assert close(ours, theirs)
    other = InputMode.SPEECH if mode.adapter == "vision" else InputMode.VISION
    assert not close(ours, model(ids, media=media, modes=[other]), 0.01)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_greedy_answers_across_the_switch_of_factors(name: str) -> None:
    """Ours are cached; computed anew when the sequence outgrows LongRoPE's original length.

    transformers' cached answers are compared up to the switch only: there it drops its cache and
    then feeds the last token alone (5.23). Without a cache it is right on both sides.
    """
    media, mode = CASES[name]
    model = small_model()
    ids = prompt(media)
    ids = ids + prompt(Media(), seed=9) * ((194 - len(ids)) // 9)
    count = 200 - len(ids) + 8
    assert 200 - len(ids) >= 6
    ours = list(model.answer(ids, media, max_tokens=count))
    theirs = reference_model(model, mode.adapter)

    def reference(tokens: int, cached: bool) -> list[int]:
        answer = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=tokens,
            do_sample=False, use_cache=cached, **inputs(media),
        )  # fmt: skip
        return answer[0, len(ids) :].tolist()

    assert ours == reference(count, cached=False)
    assert ours[: 200 - len(ids)] == reference(200 - len(ids), cached=True)
    assert len(set(ours)) > 3


@torch.no_grad()
def test_an_answer_ends_at_its_stop_token() -> None:
    model = small_model()
    media, _ = CASES["one clip"]
    free = list(model.answer(prompt(media), media, max_tokens=9))
    stop = next(token for token in free if free.index(token) > 2)
    ended = list(model.answer(prompt(media), media, max_tokens=9, stop_ids=(stop,)))
    assert ended == free[: free.index(stop) + 1]


@torch.no_grad()
@pytest.mark.parametrize("length", [60, 200, 201, 390])
def test_past_the_switch_of_factors(length: int) -> None:
    media, mode = CASES["one clip"]
    model = small_model()
    ids = prompt(media)
    ids = torch.tensor(
        [ids + list(itertools.islice(itertools.cycle(range(11, 290)), length - len(ids)))]
    )
    theirs = reference_model(model, mode.adapter)(ids, **inputs(media)).logits
    assert close(model(ids, media=media), theirs)


@torch.no_grad()
def test_each_row_of_a_batch_is_as_it_is_alone() -> None:
    """Text, pictures, sound and both in one batch, of lengths on both sides of the switch."""
    model = small_model()
    cases = [media for media, _ in CASES.values()]
    prompts = [prompt(media, seed=n) for n, media in enumerate(cases)]
    prompts[3] += prompts[0] * 25
    lengths = [len(ids) for ids in prompts]
    assert min(lengths) < 200 < max(lengths)
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    for row, one in enumerate(prompts):
        ids[row, : len(one)] = torch.tensor(one)
    media = Media(
        torch.cat([m.crops_NCSS for m in cases if m.crops_NCSS is not None]),
        torch.cat([m.valid_NPP for m in cases if m.valid_NPP is not None]),
        tuple(grid for m in cases for grid in m.grids),
        tuple(clip for m in cases for clip in m.clips),
    )
    together = model(ids, media=media, rope_length=lengths)
    for row, (one, own) in enumerate(zip(prompts, cases, strict=True)):
        alone = model(torch.tensor([one]), media=own)
        assert close(together[row : row + 1, : len(one)], alone)


def test_gradients_reach_every_part_as_in_the_reference() -> None:
    """Of the merged weights: transformers has no adapters, so ours are zero and at rest in B."""
    media, _ = CASES["picture and clip"]
    model = small_model()
    with torch.no_grad():
        for name in ("vision", "speech"):
            for key, parameter in lora.parameters(model, name):
                if "lora_B" in key:
                    parameter.zero_()
    theirs = reference_model(model, None)
    ids = torch.tensor([prompt(media)])
    weight = torch.randn(300, generator=torch.Generator().manual_seed(5))
    (model(ids, media=media) @ weight).square().mean().backward()
    (theirs(ids, **inputs(media)).logits @ weight).square().mean().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        other = expected[their_name(name.replace(".base_layer", ""))]
        if other is None:  # blocks behind the features, the head, the other projector
            assert parameter.grad is None or not parameter.grad.any()
            continue
        # a bias on all keys shifts a row's scores alike: its gradient is zero but for rounding
        floor = 1e-4 if name.endswith(("linear_k.bias", "k_proj.bias")) else 1e-7
        assert (parameter.grad - other).norm() <= 1e-4 * other.norm() + floor, name
        compared += 1
    assert compared > 100
    adapters = dict(lora.parameters(model, "vision"))
    assert all(p.grad.any() for n, p in adapters.items() if "lora_B" in n)
    assert all(p.grad is None for _, p in lora.parameters(model, "speech"))


def test_placeholders_and_media_must_agree() -> None:
    model = small_model()
    media, _ = CASES["two pictures"]
    ids = prompt(media)
    for wrong, says in (
        ((ids[1:4] + ids[5:], media), "row 0 of the batch has .* tokens for pictures"),
        ((ids, Media()), "take none"),
        ((prompt(Media()), media), "2 pictures were given"),
        ((ids, clip()), "tokens for pictures"),
        ((prompt(clip()), clip(120)), r"13 tokens for clips, but the clips given take 15"),
    ):
        with pytest.raises(PhikitError, match=says):
            model(torch.tensor([wrong[0]]), media=wrong[1])
    with pytest.raises(PhikitError, match="all three or none"):
        Media(crops_NCSS=torch.zeros(1, 3, 56, 56))


def test_the_published_model_in_names_shapes_and_numbers() -> None:
    """2047 tensors of 5,574,460,384 numbers, 160 of which are the two buffers."""
    from phikit.models.family import config

    published = config("phi-4-multimodal")
    with torch.device("meta"):
        model = Phi4MM(published)
    state = {n: tuple(t.shape) for n, t in model.state_dict().items() if n != "lm_head.weight"}
    assert len(state) == 2047
    assert sum(t.numel() for n, t in model.state_dict().items() if n in state) == 5_574_460_384
    assert sum(p.numel() for p in model.parameters()) == published.parameters == 5_574_460_224
    layer = "model.layers.31"
    for name, shape in {
        "model.embed_tokens.weight": (200_064, 3072),
        "model.norm.weight": (3072,),
        f"{layer}.input_layernorm.weight": (3072,),
        f"{layer}.self_attn.qkv_proj.base_layer.weight": (5120, 3072),
        f"{layer}.self_attn.qkv_proj.lora_A.vision.weight": (256, 3072),
        f"{layer}.self_attn.qkv_proj.lora_B.speech.weight": (5120, 320),
        f"{layer}.self_attn.o_proj.lora_B.vision.weight": (3072, 256),
        f"{layer}.mlp.gate_up_proj.base_layer.weight": (16_384, 3072),
        f"{layer}.mlp.gate_up_proj.lora_A.speech.weight": (320, 3072),
        f"{layer}.mlp.down_proj.lora_A.vision.weight": (256, 8192),
        "model.embed_tokens_extend.audio_embed.audio_projection.vision.0.weight": (3072, 1024),
        "model.embed_tokens_extend.audio_embed.encoder.encoders.23.layer_norm.bias": (1024,),
        "model.embed_tokens_extend.image_embed.glb_GN": (1, 1, 1152),
        "model.embed_tokens_extend.image_embed.sub_GN": (1, 1, 1, 1152),
        "model.embed_tokens_extend.image_embed.img_projection.2.weight": (3072, 3072),
        "model.embed_tokens_extend.image_embed.img_processor.head.probe": (1, 1, 1152),
    }.items():
        assert state[name] == shape, name
    parts = published.adapter_parameters
    assert round(parts["vision"] / 1e6, 1) == 369.1
    assert round(parts["speech"] / 1e6, 1) == 461.4
    assert round(published.image_parameters / 1e6, 1) == 441.6
