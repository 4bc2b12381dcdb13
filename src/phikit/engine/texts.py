"""What an engine knows of texts: stop texts, and constraints on what a completion may say.

A constraint is compiled by llguidance into a matcher, which says after every token which tokens may
follow: bits, one per token of the vocabulary and one more for "the form may end here". That last
one is a token that no model has, so that a request's own `stop_ids` can take its place.

Shapes: N rows, V vocabulary, W words of 32 bits.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from phikit.chat.token_bytes import token_bytes
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Constraint, Sampling
from phikit.engine.native.build import library
from phikit.engine.native.draw import mask_rows
from phikit.engine.stops import StopTexts
from phikit.errors import PhikitError, how_to_install

_COMPILED = 64  # constraints whose compiled form is kept
_MOST_BYTES = 2**18  # of a constraint's source
#: Between two parts of a document: nothing, or one space, or a new line and its indentation. Models
#: that may write any white space sometimes never come to an end of it.
WHITE_SPACE = r"[ ]|\n[ ]{0,16}"


class BadConstraint(PhikitError):
    """The constraint is one that cannot be followed."""


class Watch:
    """One completion in the making: its stop texts and its constraint.

    Attributes:
        bits: which tokens may come next, when there is a constraint: [W] int32.
        problem: why the constraint could not be followed to its end, if that happened.
    """

    __slots__ = ("bits", "matcher", "problem", "stop_ids", "stops")

    def __init__(self, stops: StopTexts | None, matcher: Any, stop_ids: Sequence[int]) -> None:
        self.stops, self.matcher, self.stop_ids = stops, matcher, stop_ids
        self.bits: np.ndarray | None = None
        self.problem = ""


class Watched(Protocol):
    """A row that may have a watch."""

    @property
    def watch(self) -> Watch | None: ...


class Texts:
    """The texts of one model's tokens.

    Args:
        vocab_size: of the model, whose logits are masked; the tokenizer may know fewer.

    Raises:
        PhikitError: the tokenizer does not put bytes side by side.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.bytes = token_bytes(tokenizer, vocab_size)
        self.end = len(self.bytes)  # the token that no model has
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        self._ll: Any = None
        self._lock = threading.Lock()  # engines in several threads share what is compiled

    def check(self, sampling: Sampling) -> None:
        """Whether the request's constraint can be followed.

        Raises:
            PhikitError: llguidance is missing, or does not take the constraint; says why.
        """
        if sampling.constraint is not None:
            self._compile(sampling.constraint)

    def watch(self, sampling: Sampling) -> Watch | None:
        """For one sample; None when there is nothing to watch.

        Raises:
            PhikitError: as `check`; or the form allows nothing but to end, and no token ends it.
        """
        stops = StopTexts(sampling.stop) if sampling.stop else None
        if sampling.constraint is None:
            return Watch(stops, None, ()) if stops else None
        watch = Watch(stops, self._compile(sampling.constraint).deep_copy(), sampling.stop_ids)
        if self._next(watch):
            why = watch.problem or "it allows only the empty text"
            raise BadConstraint(f"the {sampling.constraint.kind} cannot be followed: {why}")
        return watch

    # --- in every step ---------------------------------------------------------------------------

    def mask(self, rows: Sequence[Watched], logits_NV: Tensor) -> Tensor:
        """The logits, with what constraints forbid at -inf; those given stay as they are."""
        bits = [r.watch.bits if r.watch is not None else None for r in rows]
        some = next((b for b in bits if b is not None), None)
        if some is None:
            return logits_NV
        every = np.full_like(some, -1)
        bits_NW = np.stack([every if b is None else b for b in bits])
        built = library() if logits_NV.device.type == "cpu" else None
        if built is not None:
            return mask_rows(built, logits_NV, bits_NW)
        allowed_NV = np.unpackbits(
            bits_NW.view(np.uint8), axis=1, count=logits_NV.shape[1], bitorder="little"
        )
        allowed = torch.from_numpy(allowed_NV.view(np.bool_)).to(logits_NV.device)
        return torch.where(allowed, logits_NV, -math.inf)

    def follow(self, rows: Sequence[Watched], token_N: np.ndarray) -> np.ndarray:
        """Takes in what was drawn; says which completions are at their end: booleans [N]."""
        ended_N = np.zeros(len(rows), dtype=bool)
        for i, (row, token) in enumerate(zip(rows, token_N.tolist(), strict=True)):
            watch = row.watch
            if watch is None:
                continue
            if watch.stops is not None:
                watch.stops.push(self.bytes[token])
                ended_N[i] = watch.stops.stopped
            if watch.matcher is not None and not ended_N[i] and token not in watch.stop_ids:
                if not watch.matcher.consume_token(token):
                    watch.problem = _first_line(watch.matcher.get_error())
                ended_N[i] = bool(watch.problem) or self._next(watch)
        return ended_N

    def _next(self, watch: Watch) -> bool:
        """Finds what may come next; whether nothing may, because the form is complete."""
        matcher = watch.matcher
        if matcher.is_stopped() and not matcher.is_error():
            return True
        words = np.zeros(-(-(self.end + 1) // 32), dtype=np.int32)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error():
            watch.problem = _first_line(matcher.get_error())
            return True
        flags = words.view(np.uint8)
        may_end = bool(flags[self.end // 8] >> (self.end % 8) & 1)
        for token in watch.stop_ids:
            byte, bit = token // 8, np.uint8(1 << token % 8)
            flags[byte] = flags[byte] | bit if may_end else flags[byte] & ~bit
        flags[self.end // 8] &= ~np.uint8(1 << self.end % 8)
        watch.bits = words
        return not words.any()

    # --- compiling -------------------------------------------------------------------------------

    def _compile(self, constraint: Constraint) -> Any:
        with self._lock:
            if constraint in self._compiled:
                self._compiled.move_to_end(constraint)
                return self._compiled[constraint]
            matcher = self._matcher(constraint)
            self._compiled[constraint] = matcher
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
            return matcher

    def _matcher(self, constraint: Constraint) -> Any:
        try:
            import llguidance
        except ModuleNotFoundError as e:
            raise PhikitError(
                "constrained output needs llguidance", how_to_install("constrained")
            ) from e
        if len(constraint.source.encode()) > _MOST_BYTES:
            raise BadConstraint(f"the {constraint.kind} is longer than {_MOST_BYTES} bytes")
        if self._ll is None:
            vocabulary = llguidance.TokenizerWrapper(_Vocabulary(self))
            self._ll = llguidance.LLTokenizer(vocabulary)
        kinds = llguidance.LLMatcher
        if constraint.kind == "json_schema":
            grammar = kinds.grammar_from_json_schema(
                _schema(constraint.source), {"whitespace_pattern": WHITE_SPACE}
            )
        elif constraint.kind == "regex":
            grammar = kinds.grammar_from_regex(constraint.source)
        else:
            grammar = kinds.grammar_from_lark(constraint.source)
        matcher = llguidance.LLMatcher(self._ll, grammar, log_level=0)
        if matcher.is_error():
            raise BadConstraint(
                f"the {constraint.kind} cannot be followed: {_first_line(matcher.get_error())}",
                "correct it, or ask for less",
            )
        return matcher


def _schema(source: str) -> str:
    try:
        schema = json.loads(source)
    except ValueError as e:
        raise BadConstraint(f"the json_schema is not valid JSON: {e}") from e
    if not isinstance(schema, dict | bool):
        raise BadConstraint("the json_schema is neither an object nor true or false")
    return json.dumps(schema)


def _first_line(error: str) -> str:
    return " ".join(error.split())[:300]


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, texts: Texts) -> None:
        self.eos_token_id, self.bos_token_id = texts.end, None
        self.tokens = [*texts.bytes, b"<the end>"]
        self.special_token_ids = [*texts.tokenizer.special.values(), texts.end]
        self._encode = texts.tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)
