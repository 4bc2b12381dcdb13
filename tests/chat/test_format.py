import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phikit.chat.format import (
    ChatFormat,
    chat_format,
)
from phikit.chat.templates import NANO_SPECIAL, PHI4, Template
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.errors import PhikitError

TEXTS = ["user asks: what is 3 + 4? assistant thinks and says: Answer: 7. system's rules"] * 8
TOKENIZER = train_bpe(TEXTS, 320, NANO_SPECIAL)
FORMAT = chat_format(TOKENIZER)
IDS = TOKENIZER.special

messages_of = lambda content: st.lists(  # noqa: E731
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": content}
    ),
    max_size=4,
)
hostile = st.lists(st.one_of(st.sampled_from(NANO_SPECIAL), st.text(max_size=6))).map("".join)


def test_the_template_is_the_published_one() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "3 + 4?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Sure?"},
    ]
    text = TOKENIZER.decode(FORMAT.render(messages, generation_prompt=True).ids)
    assert text == (
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|>"
        "<|im_start|>user<|im_sep|>3 + 4?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>7<|im_end|>"
        "<|im_start|>user<|im_sep|>Sure?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>"
    )


@given(messages_of(hostile))
def test_exactly_the_assistant_and_its_end_are_trained(messages) -> None:
    out = FORMAT.render(messages)
    trained = [i for i, t in zip(out.ids, out.trained, strict=True) if t]
    expected = "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")
    assert TOKENIZER.decode(trained) == expected
    assert sum(i == FORMAT.end_id for i in trained) == sum(
        m["role"] == "assistant" for m in messages
    )


@given(messages_of(hostile))
def test_contents_cannot_forge_the_frame(messages) -> None:
    ids = FORMAT.render(messages).ids
    for token in ("<|im_start|>", "<|im_sep|>", "<|im_end|>"):
        assert ids.count(IDS[token]) == len(messages)
    thoughts = sum(m["content"].count("<think>") for m in messages if m["role"] == "assistant")
    assert ids.count(IDS["<think>"]) == thoughts


def test_no_generation_prompt_token_is_trained() -> None:
    out = FORMAT.render([{"role": "user", "content": "hi"}], generation_prompt=True)
    assert not any(out.trained)
    assert out.ids[-1] == IDS["<|im_sep|>"]


def test_the_prompt_is_a_prefix_of_the_conversation() -> None:
    """What is generated after the prompt continues exactly as the training text does."""
    messages = [
        {"role": "user", "content": "3 + 4?"},
        {"role": "assistant", "content": " <think>so</think>7"},
    ]
    prompt = FORMAT.render(messages[:1], generation_prompt=True).ids
    whole = FORMAT.render(messages)
    assert whole.ids[: len(prompt)] == prompt
    assert all(whole.trained[len(prompt) :])
    assert FORMAT.text(whole.ids[len(prompt) :]) == messages[1]["content"]


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    saved = Tokenizer(TOKENIZER._fast, FORMAT.tokenizer_config())
    saved.save(folder)
    assert chat_format(Tokenizer.load(folder)).template == PHI4
    return transformers.AutoTokenizer.from_pretrained(folder)


plain = st.text(max_size=20).filter(lambda t: "<" not in t)


def test_transformers_makes_the_same_ids(hf) -> None:
    """For contents that spell no control token: transformers would let those forge the frame."""

    @settings(max_examples=60)
    @given(messages_of(plain), st.booleans())
    def same(messages, prompt: bool) -> None:
        if not messages:  # which transformers refuses
            return
        theirs = hf.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        assert list(theirs) == FORMAT.render(messages, prompt).ids

    same()
    thought = [{"role": "assistant", "content": "<think>\n3 + 4\n</think>\n\n'7' \\ "}]
    assert hf.apply_chat_template(thought, return_dict=False) == FORMAT.render(thought).ids


def test_transformers_knows_the_end_and_the_padding(hf) -> None:
    assert (hf.eos_token, hf.pad_token) == ("<|im_end|>", "<|pad|>")
    assert hf.encode("a 12") == TOKENIZER.encode("a 12")
    assert hf.decode(TOKENIZER.encode(" a , b")) == " a , b"


def test_another_member_is_only_other_data() -> None:
    special = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer = train_bpe(TEXTS, 300, special)
    mini = Template(
        name="mini",
        header="<|{role}|>",
        footer="<|end|>",
        end_token="<|end|>",
        inner=(),
        unprompted_end="<|endoftext|>",
    )
    chat = ChatFormat(mini, tokenizer)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    out = chat.render(messages)
    assert tokenizer.decode(out.ids) == "<|user|>hi<|end|><|assistant|>yo<|end|><|endoftext|>"
    assert chat.pad_id == tokenizer.special["<|endoftext|>"]
    fixed = ChatFormat(dataclasses.replace(mini, system="S."), tokenizer)
    text = tokenizer.decode(fixed.render([{"role": "system", "content": "mine"}], True).ids)
    assert text == "<|system|>S.<|end|><|assistant|>"


def test_a_completion_ends_at_its_first_stop() -> None:
    ids = TOKENIZER.encode_control("<think>a</think>7<|im_end|>", NANO_SPECIAL)
    assert FORMAT.text(ids) == "<think>a</think>7"
    assert FORMAT.text(ids[:-1]) == "<think>a</think>7"
    assert FORMAT.text([*ids, *ids]) == "<think>a</think>7"
    assert FORMAT.stop_ids == (IDS["<|im_end|>"], IDS["<|endoftext|>"])


def test_user_errors_are_explained() -> None:
    with pytest.raises(PhikitError, match=r"'assistent'.*\n.*'assistant'"):
        FORMAT.render([{"role": "assistent", "content": "x"}])
    with pytest.raises(PhikitError, match=r"message 1 .*no text"):
        FORMAT.render([{"role": "user"}])
    with pytest.raises(PhikitError, match="no chat format"):
        chat_format(train_bpe(TEXTS, 300, ["<|endoftext|>"]))
