"""The family's tokenizers rebuilt from tiktoken rank files.

phi-4's text tokens are those of cl100k_base, phi-4-mini's those of o200k_base; each adds control
tokens behind them and is padded to a round size. A rank file has one line per token: its bytes in
base64 and its rank, which is its id. The merges that a BPE in the other file format needs are
recovered from the ranks: every way to cut a token into two tokens is a merge, in order of rank.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from phikit.chat.format import ChatFormat
from phikit.chat.pieces import CL100K_SPLIT, O200K_SPLIT
from phikit.chat.templates import (
    PHI4,
    PHI4_MINI,
    PHI4_REASONING,
    PHI4_REASONING_VISION,
    THINK,
    Template,
)
from phikit.chat.tokenizer import BYTES, Tokenizer
from phikit.errors import PhikitError
from phikit.files import explain_os_errors


@dataclass(frozen=True)
class Encoding:
    """A member's tokenizer, but for its ranks.

    Attributes:
        split: the pattern that cuts text into words before any merging.
        special: control tokens by name. Every other id from `first_special` on is filled with
            `<|dummy_N|>`, numbered in order, as phi-4 calls its own.
        eats_space: control tokens that swallow the white space after them.
    """

    name: str
    split: str
    special: Mapping[str, int]
    first_special: int
    vocab_size: int
    template: Template
    eats_space: tuple[str, ...] = ()
    pad_token: str = "<|endoftext|>"

    def control(self) -> dict[str, int]:
        """Every control token's id, in order of id, the fillers among them."""
        named = {i: token for token, i in self.special.items()}
        control, dummies = {}, 0
        for i in range(self.first_special, self.vocab_size):
            if i in named:
                control[named[i]] = i
            else:
                control[f"<|dummy_{dummies}|>"] = i
                dummies += 1
        return control


_PHI4_SPECIAL = {
    "<|endoftext|>": 100_257,
    "<|fim_prefix|>": 100_258,
    "<|fim_middle|>": 100_259,
    "<|fim_suffix|>": 100_260,
    "<|im_start|>": 100_264,
    "<|im_end|>": 100_265,
    "<|im_sep|>": 100_266,
    "<|endofprompt|>": 100_276,
}
CL100K = Encoding(
    "cl100k",
    CL100K_SPLIT,
    _PHI4_SPECIAL,
    first_special=100_256,
    vocab_size=100_352,
    template=PHI4,
    pad_token="<|dummy_85|>",
)
# The reasoning models made two fillers into <think> and </think>.
CL100K_REASONING = replace(
    CL100K,
    name="cl100k-reasoning",
    special=_PHI4_SPECIAL | {THINK[0]: 100_350, THINK[1]: 100_351},
    template=PHI4_REASONING,
)
CL100K_REASONING_VISION = replace(
    CL100K_REASONING, name="cl100k-reasoning-vision", template=PHI4_REASONING_VISION
)
O200K = Encoding(
    "o200k",
    O200K_SPLIT,
    {
        "<|endoftext|>": 199_999,
        "<|endoftext10|>": 200_010,
        "<|endoftext11|>": 200_011,
        "<|endofprompt|>": 200_018,
        "<|assistant|>": 200_019,
        "<|end|>": 200_020,
        "<|user|>": 200_021,
        "<|system|>": 200_022,
        "<|tool|>": 200_023,
        "<|/tool|>": 200_024,
        "<|tool_call|>": 200_025,
        "<|/tool_call|>": 200_026,
        "<|tool_response|>": 200_027,
        "<|tag|>": 200_028,
    },
    first_special=199_998,
    vocab_size=200_064,
    template=PHI4_MINI,
    eats_space=("<|assistant|>", "<|user|>", "<|system|>"),
)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token → rank from a tiktoken rank file.

    Raises:
        PhikitError: a line is not `base64 rank`, or a rank or token comes twice; names the line.
    """
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    with explain_os_errors(path, "reading"):
        lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            key, value = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error) as e:
            raise PhikitError(
                f"{path}:{number}: not a token in base64 and its rank: {line[:60]!r}",
                "give a tiktoken rank file, such as cl100k_base.tiktoken",
            ) from e
        if key in ranks or value in seen:
            raise PhikitError(f"{path}:{number}: the token or the rank {value} came before")
        ranks[key] = value
        seen.add(value)
    missing = [i for i in range(BYTES) if bytes([i]) not in ranks]
    if missing:
        raise PhikitError(f"{path}: {len(missing)} of the {BYTES} single bytes are no tokens")
    return ranks


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to make a token of two tokens, in the order in which BPE shall try them."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        ways = [(token[:n], token[n:]) for n in range(1, len(token))]
        ways = [(a, b) for a, b in ways if a in ranks and b in ranks]
        merges += sorted(ways, key=lambda way: (ranks[way[0]], ranks[way[1]]))
    return merges


def from_ranks(ranks: Mapping[bytes, int], encoding: Encoding) -> Tokenizer:
    """A tokenizer with the ids of tiktoken's for text, and the member's control tokens.

    Raises:
        PhikitError: the ranks reach into the ids of the control tokens.
    """
    if max(ranks.values()) >= encoding.first_special:
        raise PhikitError(
            f"the rank file has ranks up to {max(ranks.values())}; those of {encoding.name} end "
            f"before {encoding.first_special}",
            "give the rank file of this tokenizer",
        )
    letter = _byte_letters()
    control = encoding.control()

    def spelled(token: bytes) -> str:
        return "".join([letter[byte] for byte in token])

    # through JSON, which is several times faster than handing over the merges one by one
    model = {
        "type": "BPE",
        "vocab": {spelled(token): rank for token, rank in ranks.items()} | control,
        "merges": [[spelled(a), spelled(b)] for a, b in merges_of(ranks)],
    }
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(encoding.split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    frame = json.loads(fast.to_str())
    frame["model"] |= model
    fast = FastTokenizer.from_str(json.dumps(frame))
    fast.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False, rstrip=t in encoding.eats_space)
            for t in control
        ]
    )
    pad = {"pad_token": encoding.pad_token}
    form = ChatFormat(encoding.template, Tokenizer(fast, pad))
    return Tokenizer(fast, form.tokenizer_config())


def load_ranks(path: Path, encoding: Encoding) -> Tokenizer:
    """`from_ranks` of a rank file: `load_ranks(Path("cl100k_base.tiktoken"), CL100K)`."""
    return from_ranks(read_ranks(path), encoding)


def _byte_letters() -> dict[int, str]:
    """How byte-level BPE writes each byte as one printable letter (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(BYTES + n) for n, b in enumerate(others)}
