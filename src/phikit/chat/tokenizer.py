"""Text to token ids and back, with control tokens that text can never forge.

A tokenizer has plain tokens, which `encode` makes of any text, and control tokens such as
`<|im_start|>`, which only this package's own code can ask for by `encode_control`. A user who
types `<|im_start|>` gets the plain tokens of those twelve characters. This is done by giving plain
text to a twin of the tokenizer that does not know the control tokens at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from phikit.chat.pieces import piece_encoder
from phikit.errors import PhikitError
from phikit.files import explain_os_errors, read_json, write_atomic, write_json

# cl100k's split rule in its classic form, except that every digit is a word of its own. (cl100k
# itself writes `\p{N}{1,3}`; its newer possessive form is read differently by this regex engine.)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = 256
# the characters of Unicode's White_Space, which is not quite what `str.isspace` asks for
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
_WHITE_SPACE += "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


class Tokenizer:
    """A Hugging Face fast tokenizer whose control tokens cannot be reached from text.

    Attributes:
        special: the id of every control token, in order of id.
        vocab_size: one more than the largest id, the number of rows an embedding needs.
        config: what `tokenizer_config.json` holds or will hold.
        eats_space: the ids of control tokens that swallow the white space after them.
    """

    def __init__(self, fast: FastTokenizer, config: Mapping[str, Any] | None = None) -> None:
        added = fast.get_added_tokens_decoder()
        self.special: dict[str, int] = {added[i].content: i for i in sorted(added)}
        self.eats_space = frozenset(i for i, token in added.items() if token.rstrip)
        self.vocab_size: int = max(fast.get_vocab(with_added_tokens=True).values()) + 1
        self.config: dict[str, Any] = dict(config or {})
        self._fast = fast
        plain = json.loads(fast.to_str())
        plain.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
        self._plain = FastTokenizer.from_str(json.dumps(plain))
        self._pieces = piece_encoder(plain, self._encode_all)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Reads `tokenizer.json` and, when they are there, the files that go with it.

        They are `tokenizer_config.json` and `chat_template.jinja`, which newer tools write beside
        it; `config` holds both.

        Raises:
            PhikitError: a file is missing or is not what its name says.
        """
        path, config = directory / "tokenizer.json", directory / "tokenizer_config.json"
        with explain_os_errors(path, "reading"):
            text = path.read_text(encoding="utf-8")
        try:
            fast = FastTokenizer.from_str(text)
        except Exception as e:  # the library raises bare Exception
            raise PhikitError(
                f"{path}: not a readable tokenizer ({e})", "make or fetch the folder again"
            ) from e
        held: dict[str, Any] = read_json(config) if config.exists() else {}
        template = directory / "chat_template.jinja"
        if template.exists():
            with explain_os_errors(template, "reading"):
                held["chat_template"] = template.read_text(encoding="utf-8")
        return cls(fast, held)

    def save(self, directory: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers also loads."""
        write_atomic(directory / "tokenizer.json", self._fast.to_str(pretty=True))
        write_json(directory / "tokenizer_config.json", self.config)

    def as_json(self) -> str:
        """What `tokenizer.json` holds."""
        return str(self._fast.to_str())

    def vocabulary(self) -> dict[str, int]:
        """The id of every token, as the tokenizer writes it; control tokens too."""
        return dict(self._fast.get_vocab(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Plain ids only, whatever the text spells; `decode` gives the same text back."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """`encode` of each text, as arrays: the fastest way there is for many texts."""
        if self._pieces is None:
            return [np.array(ids, np.uint32) for ids in self._encode_all(texts)]
        return self._pieces.encode(texts)

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_control(self, text: str, control: Collection[str]) -> list[int]:
        """Like `encode`, but the named control tokens, and no others, become their own ids.

        For text that is trusted to the extent of `control`: templates, a teacher's answers.

        Raises:
            PhikitError: the tokenizer has no such control token.
        """
        ids: list[int] = []
        eat_space = False
        for piece in self.split_control(text, control):
            if isinstance(piece, int):
                ids.append(piece)
                eat_space = piece in self.eats_space
            else:
                ids += self.encode(self.strip_left(piece) if eat_space else piece)
                eat_space = False
        return ids

    def split_control(self, text: str, control: Collection[str]) -> list[int | str]:
        """The named control tokens of a text as their ids, and the text between them.

        Raises:
            PhikitError: the tokenizer has no such control token.
        """
        for token in control:
            self.id_of(token)
        if not control:
            return [text] if text else []
        longest_first = sorted(control, key=lambda token: (-len(token), token))
        pattern = "(" + "|".join(map(re.escape, longest_first)) + ")"
        pieces = enumerate(re.split(pattern, text))
        return [self.special[piece] if n % 2 else piece for n, piece in pieces if piece]

    def strip_left(self, text: str) -> str:
        """The text without the white space (Unicode's) it begins with."""
        return text.lstrip(_WHITE_SPACE)

    def id_of(self, token: str) -> int:
        """The id of a control token.

        Raises:
            PhikitError: there is none of that name.
        """
        if token not in self.special:
            raise PhikitError(
                f"the tokenizer has no control token {token!r}",
                "it has: " + (", ".join(self.special) or "none"),
            )
        return self.special[token]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids; control tokens are spelled out, or left out with `skip_special`.

        Bytes that form no character become U+FFFD. Ids beyond the vocabulary (a model's
        embedding may be padded) have no text.
        """
        return self._fast.decode(list(ids), skip_special_tokens=skip_special)


def train_bpe(texts: Iterable[str], vocab_size: int, special: Sequence[str]) -> Tokenizer:
    """Learns a byte-level BPE; the control tokens get the last ids, in the given order.

    The same texts in the same order give the same tokenizer. Texts with too few different words
    give fewer tokens than asked for; see `vocab_size` of the result.

    Raises:
        PhikitError: `vocab_size` leaves no room for the 256 bytes, or `special` repeats a token.
    """
    plain_size = vocab_size - len(special)
    if plain_size < BYTES:
        raise PhikitError(
            f"vocab_size is {vocab_size}: too small for {BYTES} bytes and {len(special)} control "
            "tokens",
            f"give at least {BYTES + len(special)}",
        )
    if len(set(special)) != len(special):
        raise PhikitError(f"a control token is named twice: {', '.join(special)}")
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plain_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    fast.train_from_iterator(texts, trainer)
    fast.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return Tokenizer(fast)
