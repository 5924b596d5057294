"""Numbers and names as people read them. Rounding happens here and nowhere else.

Guarantees are rounded to what holds: radii and lower ends down, upper ends up. Shares that were counted are
rounded to the nearest number.
"""

import math
import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

__all__ = [
    "at_least",
    "count",
    "duration",
    "markdown",
    "p_value",
    "percent",
    "percent_range",
    "points",
    "points_range",
    "points_up",
    "radius",
    "radius_difference",
    "radius_range",
    "radius_up",
    "signed",
]

MISSING = "–"


def percent(share: float | None) -> str:
    """`71.4 %`."""
    return MISSING if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def at_least(share: float) -> str:
    """A lower bound of a share: `79.1 %` of 0.7917."""
    return f"{_rounded(share, 3, ROUND_FLOOR) * 100:.1f} %"


def percent_range(interval: Sequence[float]) -> str:
    """`66.1 – 75.8 %`."""
    low, high = _outwards(interval, 3)
    return f"{low * 100:.1f} – {high * 100:.1f} %"


def points(difference: float) -> str:
    """A difference of shares in percentage points: `+1.2`, `−0.4`."""
    return signed(100 * difference, 1)


def points_range(interval: Sequence[float]) -> str:
    """`−1.4 … +0.6`."""
    low, high = _outwards(interval, 3)
    return f"{signed(low * 100, 1)} … {signed(high * 100, 1)}"


def points_up(share: float) -> str:
    """A positive share in percentage points, rounded up: `3.2`."""
    return f"{_up(share) * 100:.1f}"


def radius_up(value: float) -> str:
    """What no radius can exceed: `0.616` of 0.6152."""
    return f"{_up(value):.3f}"


def radius(value: float | None, digits: int = 3) -> str:
    """A certified radius, or a mean of some: `0.249` of 0.24961."""
    return MISSING if value is None else f"{_rounded(value, digits, ROUND_FLOOR):.{digits}f}"


def radius_difference(value: float) -> str:
    """`−0.012`."""
    return signed(value, 3)


def radius_range(interval: Sequence[float]) -> str:
    """`−0.021 … +0.003`."""
    low, high = _outwards(interval, 3)
    return f"{signed(low, 3)} … {signed(high, 3)}"


def signed(value: float | Decimal, digits: int) -> str:
    """A number with its sign, zero without one; a true minus sign lines up with the plus."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def count(value: float | None) -> str:
    """`1,234,567`."""
    return MISSING if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """`0.34 s`, `47 s`, `3 min 20 s`, `5 h 10 min`."""
    if seconds is None:
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def p_value(value: float) -> str:
    """`0.034`, `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown(text: object) -> str:
    """Text that Markdown shows as it is, in one line, also in a table cell."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _up(value: float) -> Decimal:
    """To three digits, up; what computing has added to a number of three digits is none of it."""
    return _rounded(max(value - 1e-12, 0.0), 3, ROUND_CEILING)


def _outwards(interval: Sequence[float], digits: int) -> tuple[Decimal, Decimal]:
    """An interval's ends, so that the interval becomes no narrower."""
    low, high = interval
    return _rounded(low, digits, ROUND_FLOOR), _rounded(high, digits, ROUND_CEILING)


def _rounded(value: float, digits: int, how: str) -> Decimal:
    """The number that `value` is written as, rounded: 0.3 is 0.3, although the float is less by 1e-17.

    Certified radii are rounded down by more than that before (`crt.certification.bounds`).
    """
    return Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), how)
