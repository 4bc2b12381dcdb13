"""Text without what may disguise it: case, accents, look-alike letters, punctuation."""

from __future__ import annotations

import html
import re
import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Letters of other scripts that look like Latin ones, after case folding. NFKC already folds
# full-width, mathematical and ligature forms.
LOOK_ALIKES = str.maketrans(
    {
        **dict(zip("авгекмнорстухіјѕѵԁԛԝһ", "abrekmhopctyxijsvdqwh", strict=True)),  # Cyrillic
        **dict(zip("αβγεζηικνορτυχω", "abyeznikvoptuxw", strict=True)),  # Greek
        **dict(zip("ӏѐґ", "leg", strict=True)),
        **dict(zip("օսհցզո", "ouhgqn", strict=True)),  # Armenian
        **dict(zip("ᎪᏴᏟᎠᎬᎻᎫᏦᏞᎷᎮᏚᎢᏤᎳᏃᎡᏀ", "abcdehjklmpstvwzrg", strict=True)),  # Cherokee
        **dict(zip("ᴀʙᴄᴅᴇғɢʜɪᴊᴋʟᴍɴᴏᴘʀᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprtuvwyz", strict=True)),
        "ı": "i", "ł": "l", "ø": "o", "đ": "d", "ɑ": "a", "ɡ": "g",
    }
)  # fmt: skip
OTHER, LETTER, DIGIT, JOINING = range(4)  # what a byte can be; words.c has the same
# writing without spaces: each character counts as a word
_UNSPACED = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_NOT_ASCII = re.compile("[^\x00-\x7f]+")


# letters that are not drawn
_INVISIBLE = "\u115f\u1160\u3164\uffa0"
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_ZERO_WIDTH = re.compile("[\u200b\u200c\u200d\u2060\ufeff]")
_WITH_ZERO_WIDTH = re.compile(r"\S*?[\u200b\u200c\u200d\u2060\ufeff]\S*")
_LONGEST_WORD = 30  # letters; what is longer without its zero-width spaces is several words


def revealed(text: str) -> str:
    """A text without HTML's entities, and with spaces where zero-width ones part its words."""
    if "&" in text:
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    if not text.isascii() and _ZERO_WIDTH.search(text):
        text = _WITH_ZERO_WIDTH.sub(_parted, text)
    return text


def _parted(run: re.Match[str]) -> str:
    visible = _ZERO_WIDTH.sub("", run[0])
    return visible if len(visible) <= _LONGEST_WORD else _ZERO_WIDTH.sub(" ", run[0])


def fold(text: str) -> str:
    """A text in which accents and look-alike letters are gone, and case where it is not ASCII's.

    All that is not ASCII and neither a letter nor a digit becomes a space; zero-width characters,
    soft hyphens and apostrophes vanish. Digits of all scripts become 0-9.
    """
    text = revealed(text)
    if text.isascii():
        return text
    return _NOT_ASCII.sub(lambda run: run[0].translate(_FOLDING), text)


class _Folding(dict[int, str]):
    """What `fold` makes of each character, found out when it is first met.

    Characters can be folded one by one: normalising moves only marks, and these vanish.
    """

    def __missing__(self, code: int) -> str:
        decomposed = unicodedata.normalize(
            "NFKD", unicodedata.normalize("NFKC", chr(code)).casefold()
        )
        self[code] = folded = "".join(map(_fold, decomposed))
        return folded


def _fold(char: str) -> str:
    category = unicodedata.category(char)
    if char.isascii():
        return char
    if category[0] == "M" or category == "Cf" or char in "’‘´ʼ":
        return ""
    if category == "Nd":
        return str(unicodedata.digit(char))
    if category[0] not in "LN" or not char.isalnum() or char in _INVISIBLE:
        return " "
    return f" {char} " if _UNSPACED.fullmatch(char) else char.translate(LOOK_ALIKES)


_FOLDING = _Folding()


@cache
def kinds() -> NDArray[np.uint8]:
    """What each byte of a folded text is."""
    table = np.full(256, LETTER, np.uint8)  # what is not ASCII is a letter after `fold`
    table[:128] = OTHER
    for c in map(chr, range(128)):
        if c.isalpha():
            table[ord(c)] = LETTER
        elif c.isdigit():
            table[ord(c)] = DIGIT
    table[[ord("'"), ord("`")]] = JOINING
    return table


@cache
def values() -> NDArray[np.uint64]:
    """Each byte in lower case, plus one: a zero would make words of different lengths equal."""
    return np.array([ord(chr(b).lower()) if b < 128 else b for b in range(256)], np.uint64) + 1


_PLAIN_JOINING = re.compile(r"['`]|(?<=\d),(?=\d{3}(?!\d))")
_PLAIN_WORD = re.compile(r"[^\W\d_]+|\d+")


def words(text: str) -> list[str]:
    """Runs of letters and runs of digits, for people to read; `hash_words` hashes the same.

    What stands between parts of a word joins it: don't → dont, 12,000 → 12000.

    >>> words("It's  5kg of “Ѕalt” -- 1,200 cafés!")
    ['its', '5', 'kg', 'of', 'salt', '1200', 'cafes']
    """
    return _PLAIN_WORD.findall(_PLAIN_JOINING.sub("", fold(text)).lower())
