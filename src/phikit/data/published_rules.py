"""The quality rules of Gopher, C4 and FineWeb with the limits that their authors published.

Gopher: Rae et al. 2021, appendix A1.1 and table A1. C4: Raffel et al. 2020, §2.2. FineWeb: Penedo
et al. 2024, §3.6. Where the papers leave a choice, it is made as datatrove, FineWeb's own code,
makes it: `make bench-filters` compares both (docs/lab-notebook.md). Of purpose different is only
that C4's lines keep their indentation, and that no text makes a rule divide by zero.

A rule is a function text → the reason to reject it, or None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from phikit.data.english_words import sentences_in, words_of

_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_PARAGRAPH_END = re.compile(r"\n{2,}")
_LINE_END = re.compile(r"\n+")
# share of a text's characters in its most frequent n-gram, and in all n-grams that came before
_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_TERMINAL = tuple(
    "!.?։؝؞؟۔܀܁܂߹࠷࠹࠽࠾।॥၊။።፧፨᙮᜵᜶។៕៖៙៚᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᭽᭾᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼⹓⹔。꓿"
    "꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡𐩖𐩗𐽕𐽖𐽗𐽘𐽙𐾆𐾇𐾈𐾉𑁇𑁈𑂾𑂿𑃀𑃁𑅁𑅂𑅃𑇅𑇆𑇍𑇞𑇟𑈸𑈹𑈻𑈼𑊩𑑋𑑌𑗂𑗃𑗉𑗊"
    "𑗋𑗌𑗍𑗎𑗏𑗐𑗑𑗒𑗓𑗔𑗕𑗖𑗗𑙁𑙂𑜼𑜽𑜾𑥄𑥆𑩂𑩃𑪛𑪜𑱁𑱂𑻷𑻸\U00011f43\U00011f44𖩮𖩯𖫵𖬷𖬸𖭄𖺘𛲟𝪈"
)
# a word is proper if any of its characters is none of these ("•", "→" and "§" are not)
_PUNCTUATION = frozenset(
    "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
).union(_TERMINAL, map(chr, (*range(9), 11, 12, *range(13, 32), *range(127, 160))))
_C4_ENDS = (".", "?", "!", '"', "'")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICIES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip


def gopher_quality(text: str) -> str | None:
    """Does it look like prose at all: its length, its words, its signs, its lines?"""
    words = words_of(text)
    proper = [w for w in words if not _PUNCTUATION.issuperset(w)]
    if not 50 <= len(proper) <= 100_000:
        return "number of words"
    if not 3 <= sum(map(len, proper)) / len(proper) <= 10:
        return "mean word length"
    if text.count("#") / len(words) > 0.1:
        return "hashes"
    if (text.count("...") + text.count("…")) / len(words) > 0.1:
        return "ellipses"
    lines = [line.strip() for line in text.splitlines()]
    if sum(line.startswith(("•", "-")) for line in lines) / len(lines) > 0.9:
        return "bullet lines"
    if sum(line.endswith(("...", "…")) for line in lines) / len(lines) > 0.3:
        return "ellipsis lines"
    if sum(w.isalpha() or any(map(str.isalpha, w)) for w in words) / len(words) < 0.8:
        return "few words with letters"
    return "few stop words" if len(_STOP_WORDS.intersection(words)) < 2 else None


def gopher_repetition(text: str) -> str | None:
    """Does it repeat its paragraphs, lines or n-grams? Shares are of all its characters."""
    if not text:
        return "empty"
    for name, parts in (
        ("paragraphs", _PARAGRAPH_END.split(text.strip())),
        ("lines", _LINE_END.split(text)),
    ):
        number, chars = _repeated(parts)
        if number / len(parts) > 0.3 or chars / len(text) > 0.2:
            return f"duplicate {name}"
    words = words_of(text)
    for n, ids in _ngrams(words):
        if n in _TOP_NGRAM:
            # datatrove looks at one of the most frequent alone, whatever its length
            counts = np.bincount(ids)[ids]
            at = int(counts.argmax())  # the first of the most frequent ones
            chars = sum(map(len, words[at : at + n])) + n - 1
            if counts[at] * chars > _TOP_NGRAM[n] * len(text):
                return f"frequent {n}-gram"
        elif _chars_in_repeated(words, ids, n) > _DUPLICATE_NGRAMS[n] * len(text):
            return f"duplicate {n}-grams"
    return None


def _ngrams(words: Sequence[str]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For every n with a limit, a number for each n-gram: the same for the same one."""
    known: dict[str, int] = {}
    each = np.array([known.setdefault(word, len(known)) for word in words], np.int64)
    ids = each
    for n in (*_TOP_NGRAM, *_DUPLICATE_NGRAMS):
        if len(words) < n:
            return
        # of two parts; numbered anew, or the numbers would grow beyond 64 bits
        _, ids = np.unique(ids[:-1] * len(known) + each[n - 1 :], return_inverse=True)
        yield n, ids


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts stood before, and their characters."""
    seen: set[str] = set()
    number = chars = 0
    for part in parts:
        if part in seen:
            number += 1
            chars += len(part)
        seen.add(part)
    return number, chars


def _chars_in_repeated(words: Sequence[str], ids: NDArray[np.int64], n: int) -> int:
    """Characters in n-grams that stood before, none of them counted twice."""
    if ids.max() + 1 == len(ids):
        return 0
    grams = ids.tolist()
    seen: set[int] = set()
    at = chars = 0
    while at < len(grams):
        if grams[at] in seen:
            chars += sum(map(len, words[at : at + n]))
            at += n
        else:
            seen.add(grams[at])
            at += 1
    return chars


def c4_lines(text: str, terminal: bool) -> tuple[str, str | None]:
    """C4's rules: the text without bad lines, and the reason to reject it, or None.

    Args:
        terminal: drop lines that do not end in . ? ! or a quotation mark. FineWeb leaves this out,
            because it alone costs 30 % of all text.
    """
    kept: list[str] = []
    sentences = 0
    for line in text.splitlines():
        words = line.split()
        if any(len(word) > 1000 for word in words):
            continue
        line = _CITATION.sub("", line.rstrip())
        small = line.lower()
        if terminal and (not line.endswith(_C4_ENDS) or line.endswith("...")):
            continue
        if len(words) < 3:
            continue
        if "lorem ipsum" in small:
            return text, "lorem ipsum"
        if "javascript" in small:
            continue
        if "{" in line:
            return text, "curly bracket"
        if any(policy in small for policy in _POLICIES):
            continue
        sentences += sentences_in(line)
        kept.append(line)
    return "\n".join(kept), "fewer than 5 sentences" if sentences < 5 else None


def fineweb_quality(text: str) -> str | None:
    """Is it a list, or what a page repeats? The three rules that FineWeb added, and its fourth."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    if sum(line.endswith(_TERMINAL) for line in lines) / len(lines) < 0.12:
        return "few lines end a sentence"
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        return "short lines"
    if _repeated(lines)[1] / max(len(text.replace("\n", "")), 1) > 0.01:
        return "duplicate lines"
    if text.count("\n") / max(len(words_of(text)), 1) > 0.3:
        return "many lines for its words"
    return None
