"""phi-4-reasoning-vision whole: against its parts in transformers, put together here by hand."""

import json
from dataclasses import replace

import pytest
import torch
from vision_weights import close, randomise

import phikit
from phikit.errors import PhikitError
from phikit.models.checkpoint import load_any, save
from phikit.models.continuation import generate
from phikit.models.decoder import Decoder, causal_attend
from phikit.models.decoder_config import LongRope
from phikit.models.family import PHI_4_REASONING
from phikit.models.vision.config import SIGLIP2_NAFLEX, VisionConfig
from phikit.models.vision.reasoning import FlexImages, ReasoningVision
from phikit.models.vision.reasoning_config import ReasoningVisionConfig, from_hf, to_hf

transformers = pytest.importorskip("transformers")

PLACE = 119
SMALL = ReasoningVisionConfig(
    vocab_size=120, hidden_size=32, intermediate_size=48, layers=3, heads=4, kv_heads=2,
    head_dim=8, max_positions=256, rope_theta=1000.0, eos_ids=(3,), pad_id=0, image_id=PLACE,
    least_patches=4, most_patches=40,
    vision=VisionConfig(hidden_size=24, intermediate_size=40, layers=3, heads=2, patch_size=4,
                        table_side=6),
)  # fmt: skip

# The text of the config.json that was published, without the keys of training
PUBLISHED = json.loads("""{
 "architectures": ["Phi4ForCausalLMV"], "attention_bias": false, "attention_dropout": 0.0,
 "bos_token_id": 100257, "dtype": "bfloat16", "embd_pdrop": 0.0, "eos_token_id": 100265,
 "hidden_act": "silu", "hidden_size": 5120, "image_aspect_ratio": "square",
 "initializer_range": 0.02, "intermediate_size": 17920, "max_num_patches": 3600,
 "max_position_embeddings": 32768, "min_num_patches": 256, "mm_hidden_size": 1152,
 "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "google/siglip2-so400m-patch16-naflex",
 "model_type": "phi4-siglip", "num_attention_heads": 40, "num_hidden_layers": 40,
 "num_key_value_heads": 10, "original_max_position_embeddings": 32768, "pad_token_id": 100349,
 "partial_rotary_factor": 1.0, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": null,
 "rope_theta": 500000, "sliding_window": null, "tie_word_embeddings": false,
 "tokenizer_model_max_length": 8192, "use_mm_proj": true, "use_s2": false, "vocab_size": 100352,
 "vision_config": {"hidden_size": 1152, "intermediate_size": 4304,
  "model_type": "siglip2_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27}}""")


def make(config=SMALL, seed=0):
    model = ReasoningVision(config)
    randomise(model, seed)
    return model.eval()


def references(model):
    """The tower and the decoder in transformers, with the model's weights."""
    config, vision = model.config, model.config.vision
    tower = transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(**to_hf(config)["vision_config"],
                                         attn_implementation="eager")
    ).eval()  # fmt: skip
    text = transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**{**to_hf(config), "model_type": "phi3"})
    ).eval()
    state, prefix = model.state_dict(), "model.vision_tower.vision_tower.vision_model."
    tower.load_state_dict(
        {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    )
    text.load_state_dict(
        {n: t for n, t in state.items() if not n.startswith(("model.vision", "model.mm"))}
    )
    projector = torch.nn.Sequential(
        torch.nn.Linear(vision.hidden_size, config.hidden_size), torch.nn.GELU(),
        torch.nn.Linear(config.hidden_size, config.hidden_size),
    )  # fmt: skip
    projector.load_state_dict(
        {n.removeprefix("model.mm_projector."): t for n, t in state.items() if "mm_proj" in n}
    )
    return tower, projector, text


def by_hand(parts, ids_L, images, which):
    """Embeddings of one row: tokens one by one, an image's rows where its places begin."""
    tower, projector, text = parts
    out = tower(images.patches_NLV, images.valid_NL.long(), torch.tensor(images.grids),
                output_hidden_states=True).hidden_states[-2]  # fmt: skip
    rows, at = [], 0
    which = list(which)
    while at < len(ids_L):
        if ids_L[at] == PLACE:
            n = which.pop(0)
            count = images.grids[n][0] * images.grids[n][1]
            rows.append(projector(out[n, :count]))
            at += count
        else:
            rows.append(text.get_input_embeddings()(ids_L[at : at + 1]))
            at += 1
    assert not which
    return torch.cat(rows)[None]


def pictures(grids, config=SMALL, seed=1):
    counts = [r * c for r, c in grids]
    shape = (len(grids), max(counts), config.vision.patch_values)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return FlexImages(values, torch.arange(shape[1]) < torch.tensor(counts)[:, None], grids)


def prompt(grids, texts, seed=3):
    """Ids: a text before each image and one after the last."""
    generator = torch.Generator().manual_seed(seed)
    ids = []
    for length, (rows, columns) in zip(texts, [*grids, (0, 0)], strict=True):
        ids += torch.randint(4, 110, (length,), generator=generator).tolist()
        ids += [PLACE] * (rows * columns)
    return torch.tensor([ids])


CASES = {
    "one image": ([(3, 5)], (4, 6)),
    "first and last": ([(2, 2), (5, 4)], (0, 3, 0)),
    "two side by side": ([(2, 7), (6, 3)], (5, 0, 4)),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_with_images(case):
    grids, texts = CASES[case]
    model = make()
    ids, images = prompt(grids, texts), pictures(grids)
    parts = references(model)
    expected = parts[2](inputs_embeds=by_hand(parts, ids[0], images, range(len(grids)))).logits
    assert close(model.see(ids, images), expected)


@torch.no_grad()
def test_rows_of_a_batch_take_their_own_images():
    grids = [(2, 3), (1, 2), (4, 2)]  # the first row has one, the second two
    model = make()
    first, second = prompt(grids[:1], (4, 9)), prompt(grids[1:], (3, 2, 4), seed=8)
    assert first.shape == second.shape
    images = pictures(grids)
    parts = references(model)
    got = model.see(torch.cat((first, second)), images)
    for row, ids, which in ((0, first, [0]), (1, second, [1, 2])):
        expected = parts[2](inputs_embeds=by_hand(parts, ids[0], images, which)).logits
        assert close(got[row : row + 1], expected)


@torch.no_grad()
def test_without_images_it_is_the_decoder():
    model = make()
    plain = Decoder(SMALL.decoder)
    plain.load_state_dict(model.state_dict(), strict=False)
    ids = prompt([], (20,))
    assert torch.equal(model(ids), plain(ids))
    assert torch.equal(model.see(ids), plain(ids))


@torch.no_grad()
def test_cached_decoding_after_an_image():
    grids, texts = [(3, 4), (2, 2)], (4, 3, 5)
    model = make()
    ids, images = prompt(grids, texts), pictures(grids)
    parts = references(model)
    embedded = by_hand(parts, ids[0], images, (0, 1))
    out = parts[2].generate(
        inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2]), do_sample=False,
        max_new_tokens=24, min_new_tokens=24, pad_token_id=0, eos_token_id=None,
    )[0].tolist()  # fmt: skip
    got = list(generate(model, model.embed(ids, images), 24))
    assert got == out
    assert len(set(got)) > 2  # not one token over and over
    stop = got[5]
    until = list(generate(model, model.embed(ids, images), 24, stop_ids=[stop]))
    assert until == got[: got.index(stop) + 1]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["longrope", "window", "bidirectional"])
def test_the_cache_gives_what_a_fresh_pass_gives(kind):
    """Across LongRoPE's border, in a sliding window, and after images seen both ways."""
    changes = {
        "longrope": {"long_rope": LongRope((1.0, 1.3, 1.1, 2.0), (1.4, 3.0, 2.2, 4.0), 40)},
        "window": {"sliding_window": 11},
        "bidirectional": {
            "bidirectional_images": True,
            "long_rope": LongRope((1.0, 1.3, 1.1, 2.0), (1.4, 3.0, 2.2, 4.0), 40),
        },
    }[kind]
    model = make(replace(SMALL, **changes))
    grids = [(3, 4)]
    ids, images = prompt(grids, (10, 10)), pictures(grids)  # 32 positions: crosses 40 within 20
    got = list(generate(model, model.embed(ids, images), 20, attend=model.attend_to(ids, images)))
    for n in range(20):
        longer = torch.cat((ids, torch.tensor([got[:n]], dtype=torch.int64)), 1)
        assert int(model.see(longer, images)[0, -1].argmax()) == got[n], n


@torch.no_grad()
def test_images_attend_within_themselves_only_when_asked():
    grids, texts = [(2, 3), (2, 2)], (3, 0, 4)
    ids, images = prompt(grids, texts), pictures(grids)
    asked = make(replace(SMALL, bidirectional_images=True))
    attend = asked.attend_to(ids, images)
    length = ids.shape[1]
    # which value reaches which position: one-hot values, equal scores
    q, v = torch.zeros(1, 4, length, length), torch.eye(length)[None, None].expand(1, 2, -1, -1)
    seen = attend(0, q, q[:, :2], v)[0, 0] > 0
    expected = torch.ones(length, length).tril().bool()
    expected[3:9, 3:9] = True
    expected[9:13, 9:13] = True
    assert torch.equal(seen, expected)
    assert make().attend_to(ids, images) is causal_attend
    assert not torch.allclose(asked.see(ids, images), make().see(ids, images))


def test_gradients_reach_the_tower():
    grids, texts = [(3, 2)], (3, 4)
    model = make()
    ids, images = prompt(grids, texts), pictures(grids)
    parts = references(model)
    model.see(ids, images).logsumexp(-1).sum().backward()
    expected = parts[2](inputs_embeds=by_hand(parts, ids[0], images, [0])).logits
    expected.logsumexp(-1).sum().backward()
    found = {
        **{f"model.vision_tower.vision_tower.vision_model.{n}": p
           for n, p in parts[0].named_parameters()},
        **{f"model.mm_projector.{n}": p for n, p in parts[1].named_parameters()},
        **dict(parts[2].named_parameters()),
    }  # fmt: skip
    for name, p in model.named_parameters():
        if p.grad is not None and not name.endswith("k_proj.bias"):
            assert close(p.grad, found[name].grad), name
    assert model.tower.embeddings.position_embedding.weight.grad.abs().max() > 0


def test_places_and_patches_must_agree():
    model = make()
    with pytest.raises(PhikitError, match=r"has 6 places .* the images have 4\n.*token 119"):
        model.see(prompt([(2, 3)], (1, 1)), pictures([(2, 2)]))
    with pytest.raises(PhikitError, match=r"has 6 places .* the images have 0"):
        model.see(prompt([(2, 3)], (1, 1)))


def test_it_is_written_and_loaded_by_its_architecture(tmp_path):
    model = make()
    save(model, tmp_path)
    back = phikit.load(tmp_path)
    assert type(back) is ReasoningVision
    assert back.config == replace(SMALL, bos_id=None)
    assert {n: t.shape for n, t in back.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    ids, images = prompt([(2, 3)], (2, 2)), pictures([(2, 3)])
    assert torch.equal(back.see(ids, images), model.see(ids, images))
    half = load_any(tmp_path, torch.bfloat16)
    assert half.see(ids, images).dtype == torch.bfloat16


def test_the_published_config_names_shapes_and_count():
    config = from_hf(PUBLISHED)
    assert config.vision == SIGLIP2_NAFLEX
    assert config.decoder == replace(PHI_4_REASONING, eos_ids=(100_265,))
    assert (config.least_patches, config.most_patches) == (256, 3600)
    assert from_hf(to_hf(config)) == config
    with torch.device("meta"):
        ours = ReasoningVision(config)
        hf = to_hf(config)
        tower = transformers.Siglip2VisionModel(
            transformers.Siglip2VisionConfig(**PUBLISHED["vision_config"])
        )
        text = transformers.Phi3ForCausalLM(transformers.Phi3Config(**{**hf, "model_type": "phi3"}))
    expected = {n: t.shape for n, t in text.state_dict().items()}
    prefix = "model.vision_tower.vision_tower.vision_model."
    expected |= {prefix + n: t.shape for n, t in tower.state_dict().items()}
    expected |= {f"model.mm_projector.{n}": s for n, s in {
        "0.weight": (5120, 1152), "0.bias": (5120,), "2.weight": (5120, 5120), "2.bias": (5120,),
    }.items()}  # fmt: skip
    assert {n: tuple(t.shape) for n, t in ours.state_dict().items()} == {
        n: tuple(s) for n, s in expected.items()
    }
    counted = sum(p.numel() for p in ours.parameters())
    assert counted == config.parameters
    assert counted == 14_659_507_200 + config.vision.parameters + 1152 * 5120 + 5120**2 + 2 * 5120
    assert config.flops_per_token(100) == config.decoder.flops_per_token(100)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"mm_projector_type": "linear"}, "projector 'linear' is not 'mlp2x_gelu'"),
        ({"mm_vision_tower": "google/siglip-so400m-patch14-384"}, "is not a SigLIP 2 NaFlex tower"),
        ({"mm_hidden_size": 1024}, "projector takes 1024 values but the vision tower gives 1152"),
        ({"vision_config": {"num_patches": 200}}, "position table of 200 places is no square"),
    ],
)
def test_other_kinds_of_model_are_refused(change, said):
    with pytest.raises(PhikitError, match=f"config.json: .*{said}"):
        from_hf({**PUBLISHED, **change})
