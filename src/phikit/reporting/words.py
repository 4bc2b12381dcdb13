"""Numbers as a person reads them. The template uses these as filters."""

from __future__ import annotations

import math

MINUS = "−"
THIN = "\u202f"  # a narrow space that does not break, between a number and its unit


def percent(share: float) -> str:
    """0.5234 → "52.3 %"."""
    return f"{100 * share:.1f}{THIN}%"


def points(difference: float) -> str:
    """0.0312 → "+3.1": a difference of two percentages, always signed."""
    text = f"{100 * abs(difference):.1f}"
    sign = "±" if float(text) == 0 else ("+" if difference > 0 else MINUS)
    return sign + text


def p_value(p: float) -> str:
    """A p-value as the report shows it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float) -> str:
    """75 → "1 min 15 s"."""
    if seconds < 10:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60:02}{THIN}min"


def quantity(number: float) -> str:
    """A count in three digits: 751104 → "751 k"; whole numbers below 10,000 in full."""
    if not math.isfinite(number):
        return "–"
    if abs(number) < 10_000:
        return f"{number:,.0f}" if float(number).is_integer() else f"{number:.3g}"
    for power, unit in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 10**power:
            scaled = number / 10**power
            digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
            return f"{scaled:.{digits}f}{THIN}{unit}"
    return f"{number:,.0f}"


def memory(size: float) -> str:
    """Bytes in GiB or MiB."""
    if size >= 2**30:
        return f"{size / 2**30:.2f}{THIN}GiB"
    return f"{size / 2**20:.0f}{THIN}MiB"


def number(value: float) -> str:
    """An axis label: three significant digits without an exponent where that is short."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 100_000:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    else:
        text = f"{value:.1e}"
    return text.replace("-", MINUS)


FILTERS = {
    f.__name__: f for f in (percent, points, p_value, duration, quantity, memory, number)
}  # fmt: skip
