import pytest
import torch

from phikit.chat.format import ChatFormat
from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import train_bpe
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.talk import Conversation, Manner, respond, text_pieces
from phikit.errors import PhikitError
from phikit.files import write_json
from phikit.models.checkpoint import save
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the cat sat on the mat 🙂 € ü"] * 3, 300, NANO_SPECIAL)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, layers=1, heads=2,
        kv_heads=1, head_dim=16, max_positions=80,
    )  # fmt: skip
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(1))
    return model


def test_pieces_are_whole_characters(tokenizer):
    text = "aü€🙂 the cat 👩‍👩‍👧 é"
    pieces = list(text_pieces(iter(tokenizer.encode(text)), tokenizer))
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert len(pieces) > 5


def test_bytes_that_are_no_text_still_come_out(tokenizer):
    smile = tokenizer.encode("🙃")
    assert len(smile) > 1
    ids = [*smile[:-1], *tokenizer.encode("cat"), *smile[:-1]]
    assert "".join(text_pieces(iter(ids), tokenizer)) == tokenizer.decode(ids)


def test_an_answer_is_the_engines_rollout_as_text(model, tokenizer):
    form = ChatFormat.phi4(tokenizer)
    messages = [{"role": "user", "content": "the cat"}]
    for seed in range(5):
        sampling = Sampling(max_tokens=30, stop_ids=form.stop_ids)
        ask = Request(tuple(form.render(messages, True).ids), sampling, seed=seed)
        rollout = collect(LocalEngine(model), [ask])[0][0]
        assert "".join(respond(model, form, messages, sampling, seed)) == form.text(
            rollout.completion_ids
        )


def test_a_conversation_remembers_and_forgets(tmp_path, model, tokenizer):
    save(model, tmp_path)
    tokenizer.save(tmp_path)
    talk = Conversation(tmp_path)
    first = "".join(talk.reply("the cat"))
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]
    assert talk.messages[1]["content"] == first
    unread = talk.reply("the mat")
    next(unread)
    unread.close()
    assert len(talk.messages) == 2
    for _ in range(4):
        "".join(talk.reply("sat"))
    assert talk.messages[0]["role"] == "user" and len(talk.messages) < 10
    assert "".join(Conversation(tmp_path).reply("the cat")) == first
    with pytest.raises(PhikitError, match="the model's context is 80"):
        list(talk.reply("cat " * 100))


def test_answers_are_drawn_as_published_unless_asked_otherwise(tmp_path, model, tokenizer):
    save(model, tmp_path)
    tokenizer.save(tmp_path)
    assert Conversation(tmp_path)._sampling(media=False).temperature == 0.5
    published = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 50}
    write_json(tmp_path / "generation_config.json", published)
    drawn = Conversation(tmp_path)._sampling(media=False)
    assert (drawn.temperature, drawn.top_p) == (0.8, 0.9)
    assert Conversation(tmp_path)._sampling(media=True).temperature == 0
    manner = Manner(temperature=0.3, top_p=0.7, max_tokens=5, seed=3)
    for media in (False, True):
        asked = Conversation(tmp_path, manner)._sampling(media)
        assert (asked.temperature, asked.top_p, asked.max_tokens) == (0.3, 0.7, 5)
    talk = Conversation(tmp_path, manner)
    assert len(tokenizer.encode("".join(talk.reply("the cat")))) <= 5
    with pytest.raises(PhikitError, match="neither sees nor hears"):
        list(talk.reply("what is this?", [tmp_path / "picture.png"]))
