import random

import pytest
import torch
from engine_fixtures import CONFIGS

from phikit.engine.score import logprobs
from phikit.errors import PhikitError


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_a_lone_forward_pass(models, name):
    model, rng = models[name], random.Random(2)
    pairs = [
        (rng.choices(range(97), k=rng.randint(1, 30)), rng.choices(range(97), k=rng.randint(0, 20)))
        for _ in range(30)
    ]
    scored = logprobs(model, pairs, temperature=0.7)
    for (prompt, completion), found in zip(pairs, scored, strict=True):
        ids = torch.tensor([prompt + completion])
        # the last token is never fed: the length that counts for LongRoPE is without it
        with torch.no_grad():
            logp = (model(ids[:, : max(1, len(ids[0]) - 1)]) / 0.7).log_softmax(-1)[0]
        expected = [float(logp[len(prompt) - 1 + i, t]) for i, t in enumerate(completion)]
        assert found == pytest.approx(expected, abs=2e-5)


def test_no_gradient_and_no_sequence_is_fine(models):
    assert logprobs(models["phi"], []) == []
    assert logprobs(models["phi"], [([1], [])]) == [[]]


def test_wrong_sequences_are_refused(models):
    with pytest.raises(PhikitError, match="sequence 1: the prompt is empty"):
        logprobs(models["phi"], [([1], [2]), ([], [2])])
    with pytest.raises(PhikitError, match="has 65 tokens; the context is 64"):
        logprobs(models["phi"], [([1] * 5, [2] * 60)])
