"""The tokenizer that a GGUF file holds."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from phikit.chat.tiktoken import CL100K_SPLIT, O200K_SPLIT
from phikit.chat.tokenizer import Tokenizer
from phikit.errors import PhikitError
from phikit.models.gguf import GGUF

_CONTROL, _USER_DEFINED = 3, 4  # token types; 1 is plain text
# how the file says that words are cut → the pattern that cuts them
_SPLITS = {
    "dbrx": CL100K_SPLIT,  # llama.cpp's name for phi-4's
    "llama-bpe": CL100K_SPLIT,
    "gpt-4o": O200K_SPLIT,  # and for phi-4-mini's
}


def tokenizer_of(file: GGUF) -> Tokenizer:
    """The tokenizer in a GGUF file, with its chat template.

    Raises:
        PhikitError: it is not a byte-level BPE, or cuts words in a way that is not known here.
    """
    kind = file.need("tokenizer.ggml.model")
    if kind != "gpt2":
        raise PhikitError(
            f"{file.path}: its tokenizer is {kind!r}; phikit reads byte-level BPE ('gpt2') only"
        )
    tokens: list[str] = file.need("tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ", 1)) for m in file.need("tokenizer.ggml.merges")]
    types = file.metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
    fast = FastTokenizer(model)
    fast.pre_tokenizer = _words(file)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return Tokenizer(fast, _config(file, tokens))


def _words(file: GGUF) -> pre_tokenizers.PreTokenizer:
    name = file.metadata.get("tokenizer.ggml.pre", "gpt-2")
    if name == "smollm":
        # every digit alone, and only then GPT-2's words
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name not in _SPLITS:
        raise PhikitError(
            f"{file.path}: its tokenizer cuts words the way {name!r} does, which is not known here",
            "known: " + ", ".join(["smollm", "gpt-2", *_SPLITS]),
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLITS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _config(file: GGUF, tokens: list[str]) -> dict[str, Any]:
    """What `tokenizer_config.json` must say, from the file's own words."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        index = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            config[f"{name}_token"] = tokens[index]
    if template := file.metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config
