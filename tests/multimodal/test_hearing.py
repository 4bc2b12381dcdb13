"""Hearing is learnt: the audio half and the speech adapter, the decoder itself left as it is."""

import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from phi4mm_reference import small_model
from sounds import speech

from phikit.chat.multimodal import features_of
from phikit.models.audio.encoder import rows_of
from phikit.models.multimodal.media import Media
from phikit.models.multimodal.model import Phi4MM

WORDS = ("yes", "seven")
Spoken = list[tuple[torch.Tensor, int]]


def spoken(folder: Path, speeds: tuple[int, ...], pitches: tuple[int, ...]) -> Spoken:
    clips = []
    for number, word in enumerate(WORDS):
        for speed in speeds:
            for pitch in pitches:
                path = folder / f"{word}-{speed}-{pitch}.wav"
                command = ["espeak-ng", "-s", str(speed), "-p", str(pitch), "-w", path, word]
                subprocess.run(command, check=True)
                clips.append((features_of(path), number))
    return clips


def answers(model: Phi4MM, clips: Spoken) -> torch.Tensor:
    """Logits of the token after each clip's prompt."""
    rows = [[11, *[model.config.audio_id] * rows_of(len(clip)), 12] for clip, _ in clips]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    hidden = model.hidden(ids, media=Media(clips=tuple(clip for clip, _ in clips)))
    last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
    return model.lm_head(last)


def right(model: Phi4MM, clips: Spoken) -> int:
    model.eval()
    with torch.no_grad():
        best = answers(model, clips).argmax(-1).tolist()
    return sum(token == 20 + number for token, (_, number) in zip(best, clips, strict=True))


@pytest.mark.slow
def test_two_spoken_words_are_told_apart_at_unheard_speeds_and_pitches(tmp_path: Path) -> None:
    speech(tmp_path)  # skips where the tools are missing
    heard = spoken(tmp_path, (130, 160, 190, 220), (30, 50, 70))
    unheard = spoken(tmp_path, (145, 205), (40, 60))
    model = small_model()
    normaliser = model.get_submodule("model.embed_tokens_extend.audio_embed.encoder")
    normaliser.get_buffer("encoder_embedding.global_mean").fill_(8.0)
    normaliser.get_buffer("encoder_embedding.global_invstd").fill_(0.25)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("audio_embed" in name or ".speech." in name)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=2e-3)
    assert right(model, unheard) <= len(unheard) // 2
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        model.train()
        batch = [heard[i] for i in torch.randperm(len(heard), generator=generator)[:16]]
        wanted = torch.tensor([20 + number for _, number in batch])
        optimiser.zero_grad()
        F.cross_entropy(answers(model, batch), wanted).backward()
        optimiser.step()
    assert right(model, unheard) >= len(unheard) - 1
    for name, tensor in model.state_dict().items():
        # not the projector of sound beside a picture, nor the constants of the normaliser
        hears = "audio_embed" in name or ".speech." in name
        hears &= "projection.vision" not in name and "global_" not in name
        assert hears != torch.equal(tensor, before[name]), name
