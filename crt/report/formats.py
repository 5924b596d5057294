"""Numbers and names as people read them. Rounding happens here and nowhere else."""

import math
import re
from collections.abc import Sequence

__all__ = [
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


def percent_range(interval: Sequence[float]) -> str:
    """`66.1 – 75.8 %`."""
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f} %"


def points(difference: float) -> str:
    """A difference of shares in percentage points: `+1.2`, `−0.4`."""
    return signed(100 * difference, 1)


def points_range(interval: Sequence[float]) -> str:
    """`−1.4 … +0.6`."""
    return f"{points(interval[0])} … {points(interval[1])}"


def points_up(share: float) -> str:
    """A positive share in percentage points, rounded up: `3.2`."""
    return f"{_up(100 * share, 1):.1f}"


def radius_up(value: float) -> str:
    """A positive radius, rounded up: `0.013`."""
    return f"{_up(value, 3):.3f}"


def _up(value: float, digits: int) -> float:
    return math.ceil(value * 10**digits - 1e-9) / 10**digits


def radius(value: float | None) -> str:
    """ACR and other radii, three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def radius_difference(value: float) -> str:
    """`−0.012`."""
    return signed(value, 3)


def radius_range(interval: Sequence[float]) -> str:
    """`−0.021 … +0.003`."""
    return f"{radius_difference(interval[0])} … {radius_difference(interval[1])}"


def signed(value: float, digits: int) -> str:
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
