"""Personal data and secrets in texts: found, and replaced by a word that says what stood there.

E-mail addresses, IP addresses of the public net, telephone numbers in an international or North
American form, credit card numbers (with their check digit) and keys of well-known services.
Addresses that are examples by definition (example.com, 127.0.0.1, 192.168...) stay.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

Harmless = Callable[[re.Match[str]], bool]

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_EXAMPLES = re.compile(
    r"(?i)(?:^|[@.])(?:example\.(?:com|org|net|edu)|[\w-]+\.(?:example|invalid|test|localhost))$"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_IPV6 = re.compile(
    r"(?<![\w:])(?:(?:[0-9A-Fa-f]{1,4}:){3,7}[0-9A-Fa-f]{1,4}"
    # shortened: only where addresses are given out, because a::b is a name in many languages
    r"|[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{1,4}){0,5}:(?::[0-9A-Fa-f]{1,4}){1,6})(?![\w:])"
)
# what stands before four numbers that are a version or a place in a text
_VERSION = re.compile(
    r"(?:\b(?:v|ver|versions?|releases?|build|sections?|sec|chapter|clause|rule|table|fig|figure"
    r"|appendix|paragraph|theorem|lemma)\b[.:]?\s*|[=~<>!]=\s*|§+\s*|(?:^|[\s(])[a-z-]+/)$",
    re.IGNORECASE,
)
_BEFORE = 20  # characters before a find that tell what it is
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?(?:\d{2,4}[ .-]?){2,4}\d{2,4}"
    r"|\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-]|\.\d)")
_KEY = re.compile(
    r"\bAKIA[0-9A-Z]{16}\b"  # Amazon
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{60,}\b"
    r"|\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{32,}"
    r"|\bAIza[0-9A-Za-z_-]{35}\b"  # Google
    r"|\bxox[abprs]-[0-9A-Za-z-]{20,}"  # Slack
    r"|\bglpat-[0-9A-Za-z_-]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{15,}"  # JSON web tokens
    r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----[\s\S]*?-----END (?:[A-Z]+ )?PRIVATE KEY-----"
)


# issuers of cards by the length of their numbers
_ISSUERS = {
    13: re.compile("4"),
    14: re.compile("30[0-5]|3[689]"),
    15: re.compile("3[47]"),
    16: re.compile("4|5[1-5]|2[2-7]|6011|6[25]|64[4-9]|35"),
    19: re.compile("4|6011|6[25]"),
}
_SUM_BEFORE, _SUM_AFTER = re.compile(r"[=*/^]\s$|\)=\s?$"), re.compile(r"\s*[=*/^<>]")


def replace_personal(text: str) -> tuple[str, dict[str, int]]:
    """The text with each find replaced (<email>, <key>, ...), and how many of each there were."""
    found: Counter[str] = Counter()

    def sub(kind: str, keep: Harmless) -> Callable[[re.Match[str]], str]:
        def replaced(match: re.Match[str]) -> str:
            if keep(match):
                return match[0]
            found[kind] += 1
            return f"<{kind}>"

        return replaced

    for kind, pattern, needed, keep in _KINDS:
        if any(sign in text for sign in needed):
            text = pattern.sub(sub(kind, keep), text)
    return text, dict(sorted(found.items()))


def _inner(find: re.Match[str]) -> bool:
    if _VERSION.search(_before(find)):
        return True
    try:
        return not ipaddress.ip_address(find[0]).is_global
    except ValueError:
        return True  # a version number, a time


def _before(find: re.Match[str]) -> str:
    return find.string[max(0, find.start() - _BEFORE) : find.start()]


def _not_a_card(find: re.Match[str]) -> bool:
    """By the issuers' first digits and lengths, and the check digit of ISO 7812 (Luhn)."""
    digits = "".join(c for c in find[0] if c.isdigit())
    issuers = _ISSUERS.get(len(digits))
    if issuers is None or not issuers.match(digits):
        return True
    plain = [int(c) for c in digits]
    total = sum(plain[-1::-2]) + sum(sum(divmod(2 * d, 10)) for d in plain[-2::-2])
    return total % 10 != 0


def _a_sum(find: re.Match[str]) -> bool:
    """A number with a sign, in a formula or with a decimal point."""
    mixed = "." in find[0] and " " in find[0]
    return bool(
        mixed or _SUM_BEFORE.search(_before(find)) or _SUM_AFTER.match(find.string, find.end())
    )


def _an_example(find: re.Match[str]) -> bool:
    # what git fetches by is nobody's address
    return find[0].startswith("git@") or bool(_EXAMPLES.search(find[0]))


def _a_name(find: re.Match[str]) -> bool:
    """Words with hyphens, as classes of style sheets are."""
    return re.fullmatch(r"sk(?:-[a-z0-9_]{1,20})+", find[0]) is not None


# kind, its pattern, signs without which there is none, which finds are harmless
_KINDS: tuple[tuple[str, re.Pattern[str], tuple[str, ...], Harmless], ...] = (
    ("key", _KEY, ("AKIA", "gh", "sk-", "AIza", "xox", "glpat-", "eyJ", "PRIVATE KEY"), _a_name),
    ("email", _EMAIL, ("@",), _an_example),
    ("ip", _IPV4, (".",), _inner),
    ("ip", _IPV6, (":",), _inner),
    ("card", _CARD, tuple("23456"), _not_a_card),
    ("phone", _PHONE, ("+", "(", "-"), _a_sum),
)
