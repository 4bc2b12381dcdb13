"""A published model behind the server, asked by the real client."""

import openai
import pytest
from serve_fixtures import running

from phikit.chat.format import chat_format
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.files import cache_folder
from phikit.models.load import load

MODEL = cache_folder() / "smollm2"
ASK = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


@pytest.mark.slow
@pytest.mark.skipif(not MODEL.exists(), reason="phikit fetch smollm2")
def test_smollm2_answers_as_it_does_offline():
    form = chat_format(Tokenizer.load(MODEL))
    ids = tuple(form.render(ASK, generation_prompt=True).ids)
    sampling = Sampling(temperature=0, max_tokens=24, stop_ids=form.stop_ids)
    rollout = collect(LocalEngine(load(MODEL), 1), [Request(ids, sampling)])[0][0]
    with (
        running(f"smol={MODEL}", "--cache", "0.1", "--rows", "4") as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        ask = {"model": "smol", "messages": ASK, "temperature": 0, "max_tokens": 24}
        answer = client.chat.completions.create(**ask, extra_body={"return_token_ids": True})
        streamed = [c.choices[0] for c in client.chat.completions.create(**ask, stream=True)]
    choice = answer.choices[0]
    assert tuple(choice.token_ids) == rollout.completion_ids
    assert choice.message.content == form.text(rollout.completion_ids)
    assert "Paris" in choice.message.content
    assert "".join(c.delta.content or "" for c in streamed) == choice.message.content
    assert streamed[-1].finish_reason == choice.finish_reason == rollout.finish
    assert answer.usage.prompt_tokens == len(ids)
