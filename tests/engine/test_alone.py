"""phi-4-mini-flash, one sample at a time: the tokens of a full forward pass, and chat."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from flash_fixtures import CONFIG, made, random_ids

from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import train_bpe
from phikit.engine import alone
from phikit.engine.base import Request, Sampling
from phikit.engine.talk import Conversation
from phikit.errors import PhikitError
from phikit.models.checkpoint import save
from phikit.models.flash.model import Flash


@pytest.mark.parametrize("piece", [3, 2048])
def test_greedy_tokens_are_those_of_full_forward_passes(piece, monkeypatch):
    monkeypatch.setattr(alone, "_PIECE", piece)
    model, prompt = made(torch.float32), tuple(random_ids(1, 11)[0].tolist())
    drawn = list(alone.stream(model, Request(prompt, Sampling(temperature=0, max_tokens=30))))
    assert len(drawn) == 30
    ids = list(prompt)
    for token in drawn:
        with torch.no_grad():
            assert int(model(torch.tensor([ids]))[0, -1].argmax()) == token
        ids.append(token)


def test_draws_depend_on_seed_and_sample_and_end_at_a_stop():
    model, prompt = made(torch.float32), (5, 9, 3)

    def tokens(seed=0, first=0, **sampling):
        request = Request(
            prompt, Sampling(max_tokens=40, **sampling), seed=seed, first_sample=first
        )
        return list(alone.stream(model, request))

    assert tokens() == tokens() != tokens(seed=1)
    assert tokens(first=1) not in (tokens(), tokens(seed=1))
    whole = tokens()
    assert tokens(stop_ids=(whole[7],)) == whole[: whole.index(whole[7]) + 1]
    assert len(tokens()) == 40
    room = Request((5,) * 60, Sampling(max_tokens=40))
    assert len(list(alone.stream(model, room))) == CONFIG.max_positions - 60


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((1,), Sampling(), n=2), "only one sample"),
        (Request((1,), Sampling(presence_penalty=1.0)), "without penalties"),
        (Request((99,), Sampling()), "not in the vocabulary"),
    ],
)
def test_what_it_cannot_do_is_said(request_, message):
    with pytest.raises(PhikitError, match=message):
        alone.stream(made(torch.float32), request_)


def test_one_can_talk_with_a_flash_directory(tmp_path):
    tokenizer = train_bpe(["the cat sat on the mat"] * 3, 300, NANO_SPECIAL)
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size, max_positions=96)
    model = Flash(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, tmp_path)
    tokenizer.save(tmp_path)
    talk = Conversation(tmp_path)
    assert isinstance(talk.model, Flash)
    text = "".join(talk.reply("the cat"))
    assert text == talk.messages[-1]["content"] and text
    assert "".join(Conversation(tmp_path).reply("the cat")) == text
