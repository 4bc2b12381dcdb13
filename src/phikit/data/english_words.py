"""English text as the words, signs and sentences that datatrove counts: those of spaCy's rules.

What stands between spaces is taken apart as spaCy (MIT licence) does it: signs are cut off at both
ends until none is left, contractions and abbreviations are known, addresses stay whole, and what
remains is cut at hyphens, slashes and the like. Characters of rare scripts are classed by Python's
own tables instead of spaCy's lists. How often both agree stands in the lab notebook.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

_PIECES = re.compile(r"\S+|\s+")
_CACHED = 40  # characters; longer pieces are seldom seen twice
_LONGEST_ADDRESS = 2000
_UPPER = "A-ZÀ-ÖØ-ÞΑ-ΩЁА-Я"
_UNCASED = "\u0590-\u1fff\u2e80-\u303f\u3041-\ud7af\uf900-\ufdff\ufe70-\ufefc"
_ALPHA = r"[^\W\d_]"
_LOWER = rf"[^\W\d_{_UPPER}]"
_ICONS = (
    "¦©®°\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116\u2117\u211e-\u2123\u2195-\u2199"
    "\u219c-\u219f\u21a1\u21a2\u21a4\u21a5\u21a7-\u21ad\u21af-\u21cd\u21d0\u21d1\u21d3\u21d5-\u21f3"
    "\u2300-\u2307\u230c-\u231f\u2322-\u2328\u232b-\u237b\u237d-\u239a\u23b4-\u23db\u23e2-\u2426"
    "\u2440-\u244a\u249c-\u24e9\u2500-\u25b6\u25b8-\u25c0\u25c2-\u25f7\u2600-\u266e\u2670-\u2767"
    "\u2794-\u27bf\u2800-\u28ff\u2b00-\u2b2f\u2b4d-\u2bfe\u2e80-\u2fd5\u3004\u3012\u3013\u3020"
    "\u3036\u3037\u303e\u303f\u3200-\u33ff\ufffc\ufffd\U0001d000-\U0001d1e8\U0001f000-\U0001f9ff"
)
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_SIGNS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_CURRENCY = r"[$£€¥฿₠-₿﷼]|US\$|C\$|A\$"
_UNITS = (
    "km²|km³|km/h|km|kmh|kmph|kg|kb|KB|m²|m³|m/s|mm²|mm³|mm|mph|mg|mbar|mb|MB|m|dm²|dm³|dm|cm²|cm³"
    "|cm|ha|µm|nm|yd|in|ft|µg|g|t|lb|oz|hPa|Pa|gb|GB|tb|TB|T|G|M|K|%|км|м|см|мм|кг|г"
)
_SIGN = f"[{re.escape(_SIGNS + _QUOTES)}{_ICONS}]"
_PREFIX = re.compile(rf"[§%=—–]|\+(?![0-9])|{_SIGN}|\.\.+|{_CURRENCY}")
_SUFFIX = re.compile(
    rf"(?:{_SIGN}|\.\.+|['’][sS]|[—–]|(?<=[0-9])\+|(?<=°[FfCcKk])\."
    rf"|(?<=[0-9])(?:{_CURRENCY})|(?<=[0-9])(?:{_UNITS})"
    rf"|(?<={_LOWER})\.|(?<=[0-9%²+|{re.escape('-' + _SIGNS + _QUOTES)}])\."
    rf"|(?<=[{_UPPER}{_UNCASED}][{_UPPER}{_UNCASED}])\.)\Z"
)
_WINDOW = 16  # a suffix and what stands before it are no longer, dots apart
_INFIX = re.compile(
    rf"\.\.+|…|[{_ICONS}]|(?<=[0-9])[+\-*^](?=[0-9-])"
    rf"|(?:(?<={_LOWER})|(?<=[{_QUOTES}]))\.(?=[{_UPPER}{_UNCASED}{_QUOTES}])"
    rf"|(?<={_ALPHA}),(?={_ALPHA})"
    rf"|(?:(?<={_ALPHA})|(?<=[0-9]))(?:---?|——?|[-–~])(?={_ALPHA})"
    rf"|(?:(?<={_ALPHA})|(?<=[0-9]))[:<>=/](?={_ALPHA})"
)
_HOST = "A-Za-z0-9\u00a1-\uffff"
_ADDRESS = re.compile(
    rf"(?:[\w+\-.]{{2,}}://)?(?:\S+@)?(?:[1-9]\d{{0,2}}(?:\.\d{{1,3}}){{3}}"
    rf"|(?:(?:[{_HOST}][{_HOST}_-]{{0,62}})?[{_HOST}]\.)+{_LOWER}{{2,63}})"
    r"(?::\d{2,5})?(?:[/?#]\S*)?\Z"
)
_SENTENCE_ENDS = frozenset(
    "!.?։؟۔܀܁܂߹।॥၊။።፧፨᙮᜵᜶᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡。"
)
_WHOLE = (
    "' '' \\\") <space> C++ \\t \\n — and/or w/o 're 'd 's 'S ‘s ‘S em 'em ll 'll nuff 'nuff 'bout "
    "'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz ma'am Ma'am o'clock O'clock "
    "a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z. ä. ö. ü. "
    "doin' goin' nothin' nuthin' ol' somethin' lovin' havin' "
    "Doin' Goin' Nothin' Nuthin' Ol' Somethin' Lovin' Havin' "
    "Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. "
    "Ind. Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. "
    "N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. Adm. "
    "Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. "
    "Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s. "
    ":) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) "
    "(; (-; :( :-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ "
    ":1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D "
    ";-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o "
    "o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) "
    "(>_<) (*_*) (¬_¬) ><(((*>"
)
_CUT = (
    "y' all|y all|how 'd 'y|How 'd 'y|not 've|not ve|Not 've|Not ve|can not|Can not|gon na|Gon na"
    "|got ta|Got ta|let 's|Let 's|c'm on|C'm on"
)
_NOT_CUT = {
    "Ill", "ill", "Its", "its", "Hell", "hell", "Shell", "shell", "Shed", "shed", "were", "Were",
    "Well", "well", "Whore", "whore",
}  # fmt: skip
Words = tuple[str, ...]


@lru_cache(2)  # a text goes through several rules, one after the other
def words_of(text: str) -> Words:
    """Words and signs, in order."""
    return tuple(word for piece in text.split() for word in _words_of_piece(piece))


def sentences_in(text: str) -> int:
    """How many sentences a text has; one without any sign that ends one counts as one."""
    count, ended = 0, True
    for piece in _PIECES.findall(text.strip()):
        if piece == " ":
            continue
        # two blanks, or one of another kind, begin a sentence as a word does
        for word in (piece,) if piece.isspace() else _words_of_piece(piece):
            if word in _SENTENCE_ENDS:
                count += not count
                ended = True
            elif ended and (not count or not _is_punctuation(word)):
                count += 1
                ended = False
    return count


def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(sign).startswith("P") for sign in word)


def _words_of_piece(piece: str) -> Words:
    if piece.isalpha() and piece.isascii():
        return _known().get(piece) or (piece,)
    return _remembered(piece) if len(piece) <= _CACHED else _taken_apart(piece)


@lru_cache(1 << 16)
def _remembered(piece: str) -> Words:
    return _taken_apart(piece)


def _taken_apart(piece: str) -> Words:
    known = _known()
    if piece in known:
        return known[piece]
    return _put_together(tuple(_cut(piece, known)))


def _cut(piece: str, known: dict[str, Words]) -> Iterator[str]:
    """A piece without its signs, these, and what is left cut where it is joined."""
    begin, end = 0, len(piece)
    after: list[str] = []
    before: list[str] = []
    while begin < end and not (end - begin <= _CACHED and piece[begin:end] in known):
        prefix = _PREFIX.match(piece, begin, end)
        first = prefix.end() if prefix else begin
        if prefix and end - first <= _CACHED and piece[first:end] in known:
            before.append(piece[begin:first])
            begin = first
            break
        last = _without_suffix(piece, first, end)
        if last < end and end - begin <= _CACHED and piece[begin:last] in known:
            after.append(piece[last:end])
            end = last
            break
        if first == begin and last == end:
            break
        if prefix:
            before.append(piece[begin:first])
        if last < end:
            after.append(piece[last:end])
        begin, end = first, last
    yield from before
    if begin < end:
        yield from known.get(piece[begin:end]) or _joined(piece[begin:end])
    yield from reversed(after)


def _without_suffix(piece: str, begin: int, end: int) -> int:
    """Where the suffix of a part of a piece begins; its end, if it has none."""
    if end - begin > 1 and piece.endswith("..", begin, end):
        while end > begin and piece[end - 1] == ".":
            end -= 1
        return end
    tail = piece[max(begin, end - _WINDOW) : end]
    found = _SUFFIX.search(tail)
    return end - (len(tail) - found.start()) if found else end


def _joined(middle: str) -> Iterator[str]:
    if "." in middle and len(middle) <= _LONGEST_ADDRESS and _ADDRESS.match(middle):
        yield middle
        return
    start = 0
    for infix in _INFIX.finditer(middle):
        if infix.start() == 0:
            continue
        if infix.start() > start:
            yield middle[start : infix.start()]
        yield infix[0]
        start = infix.end()
    if start < len(middle):
        yield middle[start:]


def _put_together(words: Words) -> Words:
    """The same, but what several in a row are known as (":)", "e.g.") as one, longest first."""
    sequences, longest = _sequences()
    taken: set[int] = set()
    found: dict[int, tuple[int, Words]] = {}  # where it begins: how many words, what they become
    for size in range(min(longest, len(words)), 1, -1):
        for at in range(len(words) - size + 1):
            known = sequences.get(words[at : at + size])
            if known is not None:
                if at not in taken and at + size - 1 not in taken:
                    found[at] = size, known
                taken.update(range(at, at + size))
    if not found:
        return words
    whole: list[str] = []
    at = 0
    while at < len(words):
        size, known = found.get(at, (1, words[at : at + 1]))
        whole += known
        at += size
    return tuple(whole)


@cache
def _sequences() -> tuple[dict[Words, Words], int]:
    """What is known and would be taken apart: by its parts; and the most of them."""
    cut = {tuple(_cut(piece, {})): words for piece, words in _known().items()}
    found = {parts: words for parts, words in cut.items() if len(parts) > 1}
    return found, max(map(len, found))


@cache
def _known() -> dict[str, Words]:
    """Contractions, abbreviations and faces: what they are taken apart into."""
    known: dict[str, Words] = {word: (word,) for word in _WHOLE.split()}
    known.update(("".join(parts.split()), tuple(parts.split())) for parts in _CUT.split("|"))
    known.update(
        (f"{h}{m}", (str(h), m)) for h in range(1, 13) for m in ("a.m.", "am", "p.m.", "pm")
    )
    known.update((f"°{unit}.", ("°", unit, ".")) for unit in "cfkCFK")
    for first, *rest in _contractions():
        for word in (first, first.title()):
            for parts in ((word, *rest), (word, *(part.replace("'", "") for part in rest))):
                if (whole := "".join(parts)) not in _NOT_CUT:
                    known[whole] = parts
    curly = {k.replace("'", "’"): tuple(w.replace("'", "’") for w in v) for k, v in known.items()}
    return {**curly, **known}


def _contractions() -> Iterable[Words]:
    persons = ("i", "you", "he", "she", "it", "we", "they")
    asked = ("who", "what", "when", "where", "why", "how", "there", "that", "this")
    for word in (*persons, *asked, "these", "those"):
        for rest in (("'ll",), ("'ll", "'ve"), ("'d",), ("'d", "'ve")):
            yield word, *rest
    yield from (("i", "'m"), ("i", "'m", "a"))
    yield from ((word, "'ve") for word in ("i", "you", "we", "they", *asked[:-2], "these", "those"))
    yield from ((word, "'re") for word in ("you", "we", "they", *asked[:-2], "these", "those"))
    yield from ((word, "'s") for word in ("he", "she", "it", *asked))
    verbs = "ca could do does did had may might must need ought sha should wo would"
    for verb in verbs.split():
        yield from ((verb, "n't"), (verb, "n't", "'ve"))
    yield from ((v, "'ve") for v in ("could", "might", "must", "should", "would"))
    yield from ((v, "n't") for v in ("ai", "are", "is", "was", "were", "have", "has", "dare"))
