"""How each member of the family writes a conversation: data, and its Jinja form.

A `Template` is the strings around a message, which of their parts are control tokens, and which
roles there are. `format.ChatFormat` renders any template to token ids; `jinja` writes the same
template for transformers and inference servers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

THINK = ("<think>", "</think>")
NOTHINK = "<|dummy_84|>"
NANO_SPECIAL = (
    "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|im_start|>",
    "<|im_end|>", "<|im_sep|>", "<|endofprompt|>", *THINK, "<|pad|>",
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """How a member of the family writes a conversation.

    Attributes:
        header: comes before a message's content; `{role}` stands for its role.
        footer: comes after it, and begins with `end_token`. After an assistant's content the end
            token is trained on.
        roles: the roles there may be.
        end_token: ends the assistant's turn. `document_end` ends a text; both end a completion.
        inner: control tokens that may stand inside an assistant's content, where the tokenizer
            has them.
        pad_token: fills up a batch.
        system: the text of a system message that is there without being asked for, or empty.
        system_rule: what becomes of the conversation's own system messages then. "replaced":
            they are left out. "appended": their contents follow `system`, a space before each.
            "instead": when the first message is one, `system` is left out.
        tools: control tokens around the `tools` of a system message, which is JSON text.
        media: kind → the control token that stands, repeated, for a placeholder `<|kind_1|>`.
        media_gap: stands between what is seen or heard and the text after it.
        modes: how an answer can be made to begin, by name: the control token that says so, under
            any of its names.
        unprompted_end: ends a rendering without generation prompt, when it is not empty.
    """

    name: str
    header: str
    footer: str
    end_token: str
    document_end: str = "<|endoftext|>"
    roles: tuple[str, ...] = ("system", "user", "assistant")
    inner: tuple[str, ...] = THINK
    pad_token: str = "<|pad|>"
    system: str = ""
    system_rule: Literal["replaced", "appended", "instead"] = "replaced"
    tools: tuple[str, str] | None = None
    media: tuple[tuple[str, str], ...] = ()
    media_gap: str = ""
    modes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unprompted_end: str = ""

    def control(self) -> tuple[str, ...]:
        """The control tokens that the template itself is made of."""
        frame = "".join(self.header.replace("{role}", role) for role in self.roles)
        frame += self.footer + self.end_token + self.document_end + self.unprompted_end
        frame += "".join(self.tools or ()) + "".join(token for _, token in self.media)
        return tuple(dict.fromkeys(re.findall(r"<\|[^|<>]+\|>", frame)))

    def jinja(self) -> str:
        """The template for transformers: the same text, from which it makes the same ids.

        (There the whole text is tokenized at once, so unlike here a message that spells a control
        token does forge it.)
        """
        footer = _quote(self.footer)
        system_header = _quote(self.header.replace("{role}", "system"))
        before, after = (_quote(part) for part in self.header.split("{role}"))
        every = (
            f"{{{{ {before} + message['role'] + {after} + message['content'] }}}}"
            f"{self._jinja_tools()}{{{{ {footer} }}}}"
        )
        lines = []
        if self.system:
            said = f"{{{{ {system_header} + {_quote(self.system)} }}}}"
            if self.system_rule == "instead":
                lines.append(
                    "{% if not messages or messages[0]['role'] != 'system' %}"
                    f"{said}{{{{ {footer} }}}}{{% endif %}}"
                )
            else:
                lines.append(said)
                if self.system_rule == "appended":
                    lines.append(
                        "{% for message in messages if message['role'] == 'system' %}"
                        f"{{{{ ' ' + message['content'] }}}}{self._jinja_tools()}{{% endfor %}}"
                    )
                lines.append(f"{{{{ {footer} }}}}")
        own = self.system and self.system_rule != "instead"
        loop = "messages if message['role'] != 'system'" if own else "messages"
        lines += [
            f"{{% for message in {loop} %}}{every}{{% endfor %}}",
            "{% if add_generation_prompt %}",
            f"{{{{ {_quote(self.header.replace('{role}', 'assistant'))} }}}}",
        ]
        if self.unprompted_end:
            lines += ["{% else %}", f"{{{{ {_quote(self.unprompted_end)} }}}}"]
        return "".join([*lines, "{% endif %}"])

    def _jinja_tools(self) -> str:
        if self.tools is None:
            return ""
        before, after = map(_quote, self.tools)
        return (
            "{% if message['role'] == 'system' and 'tools' in message "
            "and message['tools'] is not none %}"
            f"{{{{ {before} + message['tools'] + {after} }}}}{{% endif %}}"
        )


# Technical report and the published, fixed template: no newlines, no token at the beginning.
PHI4 = Template(
    name="phi4",
    header="<|im_start|>{role}<|im_sep|>",
    footer="<|im_end|>",
    end_token="<|im_end|>",
)

# The model card's text ("backtracing" is its own); the template leaves other system messages out.
PHI4_REASONING = replace(
    PHI4,
    name="phi4-reasoning",
    system="You are Phi, a language model trained by Microsoft to help users. Your role as an "
    "assistant involves thoroughly exploring questions through a systematic thinking process "
    "before providing the final precise and accurate solutions. This requires engaging in a "
    "comprehensive cycle of analysis, summarizing, exploration, reassessment, reflection, "
    "backtracing, and iteration to develop well-considered thinking process. Please structure "
    "your response into two main sections: Thought and Solution using the specified format: "
    "<think> {Thought section} </think> {Solution section}. In the Thought section, detail your "
    "reasoning process in steps. Each step should include detailed considerations such as "
    "analysing questions, summarizing relevant findings, brainstorming new ideas, verifying the "
    "accuracy of the current steps, refining any errors, and revisiting previous steps. In the "
    "Solution section, based on various attempts, explorations, and reflections from the Thought "
    "section, systematically present the final solution that you deem correct. The Solution "
    "section should be logical, accurate, and concise and detail necessary steps needed to reach "
    "the conclusion. Now, try to solve the following question through the above guidelines:",
)

# Published with Phi-4-reasoning-vision-15B (its double spaces and "backtracing" are its own). The
# no-thinking token, <nothink> in the model card, has kept its old name in the tokenizer. The place
# of a picture is `<image>` there, which is no token; vLLM puts the first dummy token into it. (One
# published copy of the template has line breaks between messages; the model's own has none.)
PHI4_REASONING_VISION = replace(
    PHI4,
    name="phi4-reasoning-vision",
    inner=(*THINK, NOTHINK),
    media=(("image", "<|dummy_0|>"),),
    media_gap="\n",
    modes=(("think", ("<think>",)), ("nothink", ("<nothink>", NOTHINK))),
    system="You are Phi, a multimodal model trained by Microsoft to help users.  Your role as an "
    "assistant is to provide accurate, coherent, and actionable responses, adapting your reasoning "
    'mode ("NOTHINK" vs "THINK") automatically based on the complexity, clarity, and confidence of '
    "each task.\n\n#### NOTHINK Mode\nUse this mode when the task is clear, factual, "
    "low-complexity, or can be confidently answered immediately without iterative reasoning. Such "
    "as when the input is clear and unambiguous or visual recognition or text comprehension is "
    "straightforward, and where a factual, numeric, or short procedural answer is sufficient. "
    "Provide a concise, accurate, and confident answer. Please structure your response into one "
    f"section: using the specified format: {NOTHINK} {{Solution section}}. In the Solution "
    "section, present the final solution that you deem correct. The Solution section should be "
    "logical, accurate, and concise.\n\n#### THINK Mode\nThis requires engaging in a "
    "comprehensive cycle of analysis, summarizing, exploration, reassessment, reflection, "
    "backtracing, and iteration to develop well-considered thinking process. Use this mode when "
    "multiple modalities must be integrated, the task involves analysis, inference, design, or "
    "planning, the query is ambiguous, multi-step, or requires judgment.  Think through the visual "
    "and textual context before responding. Please structure your response into two main sections: "
    "Thought and Solution using the specified format: <think> {Thought section} </think> {Solution "
    "section}. In the Thought section, detail your reasoning process in steps. Each step should "
    "include detailed considerations such as analysing questions, summarizing relevant findings, "
    "brainstorming new ideas, verifying the accuracy of the current steps, refining any errors, "
    "and revisiting previous steps. In the Solution section, based on various attempts, "
    "explorations, and reflections from the Thought section, systematically present the final "
    "solution that you deem correct. The Solution section should be logical, accurate, and concise "
    "and detail necessary steps needed to reach the conclusion.\n\nNow, try to solve the following "
    "question through the above guidelines:",
)

# Published template of Phi-4-mini-instruct. Results of tools come back in the role "tool".
PHI4_MINI = Template(
    name="phi4-mini",
    header="<|{role}|>",
    footer="<|end|>",
    end_token="<|end|>",
    roles=("system", "user", "assistant", "tool"),
    inner=("<|tool_call|>", "<|/tool_call|>", *THINK),
    pad_token="<|endoftext|>",
    tools=("<|tool|>", "<|/tool|>"),
    unprompted_end="<|endoftext|>",
)

PHI4_MINI_REASONING = replace(
    PHI4_MINI,
    name="phi4-mini-reasoning",
    system="Your name is Phi, an AI math expert developed by Microsoft.",
    system_rule="appended",
)

# Phi-4-multimodal: phi-4-mini's, with `<|image_1|>` and `<|audio_1|>` for what is seen and heard.
PHI4_MULTIMODAL = replace(
    PHI4_MINI,
    name="phi4-multimodal",
    media=(("image", "<|endoftext10|>"), ("audio", "<|endoftext11|>")),
)

# ChatML as SmolLM2 writes it.
SMOLLM2 = Template(
    name="smollm2",
    header="<|im_start|>{role}\n",
    footer="<|im_end|>\n",
    end_token="<|im_end|>",
    inner=(),
    pad_token="<|im_end|>",
    system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    system_rule="instead",
)

CHATML = replace(SMOLLM2, name="chatml", system="")

#: In the order in which they are tried: those that ask for more come first.
TEMPLATES = (
    PHI4_REASONING_VISION, PHI4_REASONING, PHI4, PHI4_MINI_REASONING, PHI4_MULTIMODAL, PHI4_MINI,
    SMOLLM2, CHATML,
)  # fmt: skip


def _quote(text: str) -> str:
    """A string literal of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
