"""Every member's chat format against a Jinja reference, and under adversarial conversations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.templates import (
    CHATML,
    PHI4,
    PHI4_MINI,
    PHI4_MINI_REASONING,
    PHI4_MULTIMODAL,
    PHI4_REASONING,
    PHI4_REASONING_VISION,
    SMOLLM2,
    TEMPLATES,
    THINK,
    Template,
)
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.errors import PhikitError

# What each published template writes, in Jinja's own words and independent of `Template.jinja`.
_IM = "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>"
_IM_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
_TOOLS = (
    "{% if m.tools is defined and m.tools is not none %}<|tool|>{{ m.tools }}<|/tool|>{% endif %}"
)
_MINI_END = "{% if add_generation_prompt %}<|assistant|>{% else %}<|endoftext|>{% endif %}"
_NOT_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}"
REFERENCE = {
    PHI4: "{% for m in messages %}" + _IM + "{% endfor %}" + _IM_PROMPT,
    PHI4_REASONING: f"<|im_start|>system<|im_sep|>{PHI4_REASONING.system}<|im_end|>"
    + _NOT_SYSTEM + _IM + "{% endif %}{% endfor %}" + _IM_PROMPT,
    PHI4_REASONING_VISION: f"<|im_start|>system<|im_sep|>{PHI4_REASONING_VISION.system}<|im_end|>"
    + _NOT_SYSTEM + _IM + "{% endif %}{% endfor %}" + _IM_PROMPT,
    PHI4_MINI: "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    + _TOOLS + "<|end|>{% endfor %}" + _MINI_END,
    PHI4_MINI_REASONING: "<|system|>Your name is Phi, an AI math expert developed by Microsoft."
    "{% for m in messages %}{% if m.role == 'system' %}{{ ' ' }}{{ m.content }}" + _TOOLS
    + "{% endif %}{% endfor %}<|end|>" + _NOT_SYSTEM
    + "<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}" + _MINI_END,
    SMOLLM2: "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful AI "
    "assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}  # fmt: skip
REFERENCE[PHI4_MULTIMODAL] = REFERENCE[PHI4_MINI]
REFERENCE[CHATML] = REFERENCE[SMOLLM2].partition("{% endif %}")[2]

TEXTS = ["user asks:\n\n what is 3 + 4? assistant thinks\nand says: Answer: 7. system's rules"] * 8
EATS_SPACE = ("<|system|>", "<|user|>", "<|assistant|>")  # as in the published tokenizer
CONTROL = tuple(dict.fromkeys(t for one in TEMPLATES for t in (*one.control(), *one.inner)))


def make_tokenizer(template: Template) -> Tokenizer:
    tokenizer = train_bpe(TEXTS, 300, [])
    tokens = dict.fromkeys((*template.control(), *template.inner, *THINK))
    tokenizer._fast.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=t in EATS_SPACE) for t in tokens]
    )
    return Tokenizer(tokenizer._fast)


FORMATS = {t.name: ChatFormat(t, make_tokenizer(t)) for t in TEMPLATES}
formats = st.sampled_from([FORMATS[t.name] for t in TEMPLATES])
plain = st.text("ab7 \n\t'{}\"é\u3000\x1f", max_size=12)
hostile = st.lists(st.one_of(st.sampled_from(CONTROL), plain, st.text(max_size=4))).map("".join)


@st.composite
def conversations(draw, template: Template, content):
    """Messages in any order, with tools where the template has a place for them."""
    messages = []
    for role in draw(st.lists(st.sampled_from(template.roles), min_size=1, max_size=4)):
        text = draw(content)
        # an answer begins a token of its own, so one that begins with space is tokenized otherwise
        messages.append({"role": role, "content": text.strip() if role == "assistant" else text})
        if role == "system" and template.tools and draw(st.booleans()):
            messages[-1]["tools"] = draw(content)
    return messages


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_the_ids_are_those_of_the_jinja_reference(template: Template) -> None:
    """For contents that spell no control token: transformers would let those forge the frame."""
    transformers = pytest.importorskip("transformers")
    form = FORMATS[template.name]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=form.tokenizer._fast)

    @settings(max_examples=50, deadline=None)
    @given(conversations(template, plain), st.booleans())
    def same(messages, prompt: bool) -> None:
        for jinja in (REFERENCE[template], template.jinja()):
            expected = theirs.apply_chat_template(
                messages, chat_template=jinja, add_generation_prompt=prompt, return_dict=False
            )
            assert form.render(messages, prompt).ids == list(expected)

    same()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_no_content_forges_a_control_token(template: Template) -> None:
    form = FORMATS[template.name]
    control = [i for t, i in form.tokenizer.special.items() if t not in template.inner]

    @given(conversations(template, hostile), st.booleans())
    def unchanged(messages, prompt: bool) -> None:
        harmless = [{**m, **{k: "x" for k in m if k != "role"}} for m in messages]
        ids, expected = (form.render(m, prompt).ids for m in (messages, harmless))
        assert [i for i in ids if i in control] == [i for i in expected if i in control]

    unchanged()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_exactly_the_answers_and_their_ends_are_trained(template: Template) -> None:
    form = FORMATS[template.name]

    @given(conversations(template, hostile))
    def mask(messages) -> None:
        out = form.render(messages)
        trained = [i for i, t in zip(out.ids, out.trained, strict=True) if t]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        strip = form.tokenizer.strip_left if form.tokenizer.eats_space else str
        expected = "".join(strip(a) + template.end_token for a in answers)
        assert form.tokenizer.decode(trained) == expected
        # token by token: what comes before an answer is the prompt that the model is given
        for n, message in enumerate(messages):
            if message["role"] == "assistant" and template.system_rule != "appended":
                prompt = form.render(messages[:n], generation_prompt=True)
                begin = len(prompt.ids)
                assert out.ids[:begin] == prompt.ids
                assert out.trained[:begin] == prompt.trained
                assert out.trained[begin]

    mask()


def test_reasoning_always_brings_its_own_system_message() -> None:
    form = FORMATS["phi4-reasoning"]
    ids = form.render(
        [{"role": "system", "content": "Mine."}, {"role": "user", "content": "3 + 4?"}], True
    ).ids
    text = form.tokenizer.decode(ids)
    assert text == (
        f"<|im_start|>system<|im_sep|>{PHI4_REASONING.system}<|im_end|>"
        "<|im_start|>user<|im_sep|>3 + 4?<|im_end|><|im_start|>assistant<|im_sep|>"
    )
    assert "backtracing" in text
    # the template's own text is trusted: its <think> is the token the model was trained with
    assert ids.count(form.tokenizer.special["<think>"]) == 1


def test_an_answer_can_be_made_to_begin_in_a_mode() -> None:
    form = FORMATS["phi4-reasoning-vision"]
    ids = form.tokenizer.special
    plain = form.render([{"role": "user", "content": "3 + 4?"}], True).ids
    for mode, token in (("think", "<think>"), ("nothink", "<|dummy_84|>")):
        out = form.render([{"role": "user", "content": "3 + 4?"}], True, mode=mode)
        assert out.ids == [*plain, ids[token]]
        assert not any(out.trained)
    # the template's own words name both tokens, and they are these tokens there
    assert plain.count(ids["<think>"]) == plain.count(ids["<|dummy_84|>"]) == 1
    text = form.tokenizer.decode(plain)
    assert text.startswith("<|im_start|>system<|im_sep|>You are Phi, a multimodal model")
    assert "users.  Your role" in text
    with pytest.raises(PhikitError, match=r"no mode 'fast' of answering\n.*think, nothink"):
        form.render([], True, mode="fast")
    with pytest.raises(PhikitError, match="phi4 has no mode 'think'"):
        FORMATS["phi4"].render([], True, mode="think")


def test_mini_puts_tools_into_the_system_message() -> None:
    form = FORMATS["phi4-mini"]
    tools = '[{"name": "f", "parameters": {}}]'
    messages = [
        {"role": "system", "content": "Help.", "tools": tools},
        {"role": "user", "content": " hi"},
        {"role": "assistant", "content": '<|tool_call|>[{"name": "f"}]<|/tool_call|>'},
        {"role": "tool", "content": "7"},
    ]
    out = form.render(messages, generation_prompt=True)
    assert form.tokenizer.decode(out.ids) == (
        f"<|system|>Help.<|tool|>{tools}<|/tool|><|end|><|user|>hi<|end|>"
        '<|assistant|><|tool_call|>[{"name": "f"}]<|/tool_call|><|end|>'
        "<|tool|>7<|end|><|assistant|>"
    )
    assert out.ids.count(form.tokenizer.special["<|tool_call|>"]) == 1
    assert form.tokenizer.decode(form.render(messages[1:2]).ids).endswith("<|end|><|endoftext|>")


def test_mini_reasoning_joins_system_messages_to_its_own() -> None:
    form = FORMATS["phi4-mini-reasoning"]
    text = form.tokenizer.decode(
        form.render(
            [{"role": "user", "content": "hi"}, {"role": "system", "content": "Be brief."}], True
        ).ids
    )
    assert text == (
        "<|system|>Your name is Phi, an AI math expert developed by Microsoft. Be brief.<|end|>"
        "<|user|>hi<|end|><|assistant|>"
    )


def test_placeholders_become_runs_of_their_token() -> None:
    form = FORMATS["phi4-multimodal"]
    ids = form.tokenizer.special
    messages = [
        {"role": "user", "content": "<|image_1|><|image_2|>Compare. <|audio_1|> <|image_9|>"},
        {"role": "assistant", "content": "<|image_1|>"},
    ]
    media = {"<|image_1|>": 5, "<|image_2|>": 3, "<|audio_1|>": 2}
    out = form.render(messages, media=media)
    assert out.ids.count(ids["<|endoftext10|>"]) == 8
    assert out.ids.count(ids["<|endoftext11|>"]) == 2
    assert out.ids[1:9] == [ids["<|endoftext10|>"]] * 8
    text = form.tokenizer.decode(out.ids, skip_special=True)
    assert text == "Compare.  <|image_9|><|image_1|>"  # named for nobody: text
    with pytest.raises(PhikitError, match=r"<\|image_3\|> stands 0 times"):
        form.render(messages, media={**media, "<|image_3|>": 1})
    twice = [{"role": "user", "content": "<|image_1|> <|image_1|>"}]
    with pytest.raises(PhikitError, match="stands 2 times"):
        form.render(twice, media={"<|image_1|>": 1})
    with pytest.raises(PhikitError, match=r"no placeholder.*\n.*<\|image_1\|>.*<\|audio_1\|>"):
        form.render(messages, media={"<|video_1|>": 1})


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_the_format_is_recognised_in_the_files(template: Template, tmp_path) -> None:
    form = FORMATS[template.name]
    Tokenizer(form.tokenizer._fast, form.tokenizer_config()).save(tmp_path)
    assert chat_format(Tokenizer.load(tmp_path)).template == template
    # newer tools keep the template in a file of its own
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text(REFERENCE[template])
    assert chat_format(Tokenizer.load(tmp_path)).template == template


@pytest.mark.parametrize(
    ("name", "message", "said"),
    [
        ("phi4", {"role": "system", "content": "", "tools": "[]"}, "no place for tools"),
        ("phi4-mini", {"role": "user", "content": "", "tools": "[]"}, "system message"),
        ("phi4-mini", {"role": "system", "content": "", "tools": []}, "JSON text"),
        ("phi4-mini", {"role": "function", "content": ""}, "known|did you mean"),
    ],
)
def test_user_errors_are_explained(name: str, message, said: str) -> None:
    with pytest.raises(PhikitError, match=said):
        FORMATS[name].render([message])
