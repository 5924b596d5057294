"""Charts as inline SVG: they follow the page's colors, in the dark and on paper too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 12, 48
ROW = 40  # height of a row of the difference chart


@dataclass(frozen=True)
class Estimate:
    """A value at `x` with its confidence interval."""

    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """One line: `kind` names its color and dashes in the style sheet, `marks` are points with intervals."""

    kind: str
    x: Sequence[float]
    y: Sequence[float]
    marks: Sequence[Estimate] = field(default=())


@dataclass(frozen=True)
class Difference:
    """One row of the difference chart, in shares; `margin` is the largest acceptable loss; None: any."""

    label: str
    value: float
    low: float
    high: float
    margin: float | None


@dataclass(frozen=True)
class Axis:
    """A linear axis between two values at the pixels `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    unit: str = ""  # "%" and "points" show shares times 100
    least_step: float = 0.0  # between ticks

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values on the axis, three to six."""
        rough = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(rough))
        step = max(
            self.least_step, next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
        )
        return [
            step * k
            for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        ]

    def text(self, value: float) -> str:
        """A tick's label."""
        number = f"{(100 if self.unit else 1) * value:.4g}".replace("-", "−")
        return f"{number} %" if self.unit == "%" else number


def line_chart(
    ident: str,
    title: str,
    description: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_top: float | None = None,
    y_unit: str = "",
) -> Markup:
    """Lines over a common axis.

    `title` and `description` are what a screen reader says; `y_top` None: the largest value.
    """
    xs = [value for line in series for value in (*line.x, *(mark.x for mark in line.marks))]
    ys = [value for line in series for value in line.y if math.isfinite(value)]
    left = min(xs, default=0.0)
    step = float(all(value == round(value) for value in xs))  # no ticks between whole numbers such as epochs
    x = Axis(left, _above(max(xs, default=1.0), left), LEFT, WIDTH - RIGHT, least_step=step)
    low = min([0.0, *ys])
    y = Axis(low, _above(max(ys, default=1.0) if y_top is None else y_top, low), HEIGHT - BOTTOM, TOP, y_unit)
    parts = []
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{y.text(tick)}</text>')
    parts += _x_axis(x, HEIGHT - BOTTOM, x_label)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    parts += [f'<path class="line {line.kind}" d="{_path(line, x, y)}"/>' for line in series]
    for place, line in enumerate(series):
        shift = 5 * (place - (len(series) - 1) / 2)  # beside each other instead of over each other
        for mark in line.marks:
            at = max(x(mark.x) + shift, LEFT + 5 * (place + 1))
            parts.append(f'<path class="whisker {line.kind}" d="M{at} {y(mark.low)}V{y(mark.high)}"/>')
            parts.append(f'<circle class="mark {line.kind}" cx="{at}" cy="{y(mark.value)}" r="3.5"/>')
    return _svg(ident, title, description, HEIGHT, parts)


def difference_chart(ident: str, title: str, description: str, rows: Sequence[Difference]) -> Markup:
    """One row per difference: a dot, its confidence interval, a red line at the margin, a thin one at 0."""
    left, bottom = 88, TOP + ROW * len(rows)
    ends = [end for row in rows for end in (row.low, row.high, -(row.margin or 0.0), 0.0)]
    spare = 0.06 * (max(ends) - min(ends)) or 0.01
    x = Axis(min(ends) - spare, max(ends) + spare, left, WIDTH - RIGHT, "points")
    parts = _x_axis(x, bottom, "difference of certified accuracy, percentage points")
    parts.append(f'<path class="axis" d="M{x(0)} {TOP}V{bottom}"/>')
    for place, row in enumerate(rows):
        at = TOP + ROW * (place + 0.5)
        parts.append(f'<text x="{left - 10}" y="{at + 4:.1f}" text-anchor="end">{escape(row.label)}</text>')
        parts.append(f'<path class="whisker student" d="M{x(row.low)} {at}H{x(row.high)}"/>')
        parts.append(f'<circle class="mark student" cx="{x(row.value)}" cy="{at}" r="4.5"/>')
        if row.margin is not None:
            parts.append(f'<path class="margin" d="M{x(-row.margin)} {at - ROW / 2 + 4}v{ROW - 8}"/>')
    return _svg(ident, title, description, bottom + BOTTOM, parts)


def bars(counts: Sequence[int], description: str) -> Markup:
    """Counts as small bars in a row, for a table cell."""
    width, height, top = 120, 22, max([1, *counts])
    step = width / max(1, len(counts))
    parts = []
    for place, number in enumerate(counts):
        tall = round(height * number / top, 1)
        parts.append(
            f'<rect x="{place * step:.2f}" y="{height - tall:.1f}" width="{step * 0.8:.2f}" height="{tall}"/>'
        )
    opening = (
        f'<svg class="bars" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">'
    )
    return Markup(f"{opening}{''.join(parts)}</svg>")  # noqa: S704


def _above(high: float, low: float) -> float:
    """An end for an axis that has no length otherwise."""
    return high if high > low else low + 1.0


def _x_axis(x: Axis, bottom: float, label: str) -> list[str]:
    parts = [f'<path class="axis" d="M{x.start} {bottom}H{x.end}"/>']
    for tick in x.ticks():
        parts.append(f'<path class="axis" d="M{x(tick)} {bottom}v5"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 19}" text-anchor="middle">{x.text(tick)}</text>')
    parts.append(
        f'<text x="{(x.start + x.end) / 2}" y="{bottom + 39}" text-anchor="middle">{escape(label)}</text>'
    )
    return parts


def _path(line: Series, x: Axis, y: Axis) -> str:
    """Straight pieces between the points; a value that is not finite leaves a gap."""
    pieces, pen = [], "M"
    for at, value in zip(line.x, line.y, strict=True):
        if math.isfinite(value):
            pieces.append(f"{pen}{x(at)} {y(value)}")
            pen = "L"
        else:
            pen = "M"
    return "".join(pieces)


def _svg(ident: str, title: str, description: str, height: float, parts: Sequence[str]) -> Markup:
    # Every text from outside is escaped above or here.
    return Markup(  # noqa: S704
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{ident}-title {ident}-desc"><title id="{ident}-title">{escape(title)}</title>'
        f'<desc id="{ident}-desc">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )
