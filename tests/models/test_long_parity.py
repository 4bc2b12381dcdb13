"""Past phi-4-mini's real border of 4096 positions, and a real pretrained model, token by token."""

from dataclasses import replace

import pytest
import torch

import phikit
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.files import cache_folder
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import to_hf
from phikit.models.family import PHI_4_MINI

transformers = pytest.importorskip("transformers")

# phi-4-mini's own rotation (96 of 128 dimensions, its 48 factors, 4096 of 131,072), narrow else
NARROW = replace(
    PHI_4_MINI, vocab_size=64, hidden_size=384, intermediate_size=128, layers=2, heads=3,
    kv_heads=1, bos_id=0, eos_ids=(1,), pad_id=0,
)  # fmt: skip


def made() -> Decoder:
    model = Decoder(NARROW)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("length", [4096, 4097])
def test_either_side_of_4096_the_logits_are_those_of_transformers(length: int) -> None:
    model = made()
    theirs = transformers.Phi3ForCausalLM(transformers.Phi3Config(**to_hf(NARROW))).eval()
    theirs.load_state_dict(model.state_dict())
    ids = torch.randint(2, 64, (1, length), generator=torch.manual_seed(length))
    got, expected = model(ids)[0, -64:], theirs(ids, use_cache=False).logits[0, -64:]
    assert (got - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.slow
@torch.no_grad()
def test_generation_across_4096_equals_a_fresh_pass() -> None:
    """The cache that was made with short factors is of no use past the border."""
    model = made()
    prompt = torch.randint(2, 64, (4090,), generator=torch.manual_seed(0)).tolist()
    sampling = Sampling(temperature=1.0, max_tokens=14)
    rollout = collect(LocalEngine(model), [Request(tuple(prompt), sampling)])[0][0]
    ids = [*prompt, *rollout.completion_ids]
    assert len(ids) == 4104
    # the seventh token is drawn from 4096 positions, the eighth from one more
    for n in (0, 5, 6, 7, 13):
        logits = model(torch.tensor([ids[: len(prompt) + n]]))[0, -1].log_softmax(-1)
        expected = float(logits[rollout.completion_ids[n]])
        assert rollout.logprobs[n] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_says_token_by_token_what_transformers_says() -> None:
    """Cached greedy decoding of a real model in float32, our engine beside theirs."""
    directory = cache_folder() / "smollm2"
    if not directory.exists():
        pytest.skip("run `phikit fetch smollm2` first")
    ours = phikit.load(directory, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = Tokenizer.load(directory)
    texts = ["The three primary colours are", "def fibonacci(n):\n", "Once upon a time, in 1984,"]
    prompts = [tuple(tokenizer.encode(text)) for text in texts]
    asked = [Request(p, Sampling(temperature=0, max_tokens=16)) for p in prompts]
    for prompt, group in zip(prompts, collect(LocalEngine(ours), asked), strict=True):
        ids = torch.tensor([prompt])
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16,
            min_new_tokens=16, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert group[0].completion_ids == tuple(out[0, len(prompt) :].tolist())
