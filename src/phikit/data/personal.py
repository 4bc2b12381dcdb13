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

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_EXAMPLES = re.compile(
    r"(?i)(?:^|[@.])(?:example\.(?:com|org|net|edu)|[\w-]+\.(?:example|invalid|test|localhost))$"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){3,7}[0-9A-Fa-f]{1,4}(?![\w:])")
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


def replace_personal(text: str) -> tuple[str, dict[str, int]]:
    """The text with each find replaced (<email>, <key>, ...), and how many of each there were."""
    found: Counter[str] = Counter()

    def sub(kind: str, keep: Callable[[str], bool]) -> Callable[[re.Match[str]], str]:
        def replaced(match: re.Match[str]) -> str:
            if keep(match[0]):
                return match[0]
            found[kind] += 1
            return f"<{kind}>"

        return replaced

    for kind, pattern, needed, keep in _KINDS:
        if any(sign in text for sign in needed):
            text = pattern.sub(sub(kind, keep), text)
    return text, dict(sorted(found.items()))


def _inner(address: str) -> bool:
    try:
        return not ipaddress.ip_address(address).is_global
    except ValueError:
        return True  # a version number, a time


def _not_a_card(digits: str) -> bool:
    """The check digit of ISO 7812 (Luhn)."""
    plain = [int(c) for c in digits if c.isdigit()]
    total = sum(plain[-1::-2]) + sum(sum(divmod(2 * d, 10)) for d in plain[-2::-2])
    return total % 10 != 0 or plain[0] not in (3, 4, 5, 6) or len(set(plain)) < 2


def _never(_: str) -> bool:
    return False


# kind, its pattern, signs without which there is none, which finds are harmless
_KINDS: tuple[tuple[str, re.Pattern[str], tuple[str, ...], Callable[[str], bool]], ...] = (
    ("key", _KEY, ("AKIA", "gh", "sk-", "AIza", "xox", "glpat-", "eyJ", "PRIVATE KEY"), _never),
    ("email", _EMAIL, ("@",), lambda address: bool(_EXAMPLES.search(address))),
    ("ip", _IPV4, (".",), _inner),
    ("ip", _IPV6, (":",), _inner),
    ("card", _CARD, tuple("3456"), _not_a_card),
    ("phone", _PHONE, ("+", "(", "-"), _never),
)
