import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crt.report import formats


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (("percent", 0.71449), "71.4 %"),
        (("percent", 1.0), "100.0 %"),
        (("percent", None), "–"),
        (("percent", math.nan), "–"),
        (("at_least", 0.791666), "79.1 %"),
        (("at_least", 0.29), "29.0 %"),
        (("percent_range", (0.6619, 0.7571)), "66.1 – 75.8 %"),
        (("percent_range", (0.0, 1.0)), "0.0 – 100.0 %"),
        (("points", 0.0123), "+1.2"),
        (("points", -0.0123), "−1.2"),
        (("points", -0.0001), "0.0"),
        (("points_range", (-0.0131, 0.0052)), "−1.4 … +0.6"),
        (("points_range", (-0.00001, 0.00001)), "−0.1 … +0.1"),
        (("points_range", (0.0, 0.0)), "0.0 … 0.0"),
        (("radius_range", (-0.0201, 0.0021)), "−0.021 … +0.003"),
        (("radius", 0.24961), "0.249"),
        (("radius", 0.3), "0.300"),
        (("radius", 0.24961, 4), "0.2496"),
        (("radius", None), "–"),
        (("radius_up", 0.6152), "0.616"),
        (("radius_up", 0.030000000000000002), "0.030"),
        (("points_up", 0.0312), "3.2"),
        (("points_up", 0.0), "0.0"),
        (("radius_difference", -0.0124), "−0.012"),
        (("radius_difference", 0.0), "0.000"),
        (("count", 1234567), "1,234,567"),
        (("count", 4012.7), "4,013"),
        (("count", None), "–"),
        (("duration", 0.0334), "0.033 s"),
        (("duration", 9.96), "10 s"),
        (("duration", 59.6), "1 min 0 s"),
        (("duration", 200.2), "3 min 20 s"),
        (("duration", 3599.7), "1 h 0 min"),
        (("duration", 18600), "5 h 10 min"),
        (("duration", None), "–"),
        (("p_value", 0.0342), "0.034"),
        (("p_value", 0.0004), "< 0.001"),
    ],
)
def test_numbers(call, text):
    name, *values = call
    assert getattr(formats, name)(*values) == text


def shown(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"[−-]?\d+\.\d+", text)]


@given(st.floats(0, 100), st.integers(2, 6))
def test_a_radius_is_never_shown_larger_than_it_is(radius, digits):
    (text,) = shown(formats.radius(radius, digits))
    assert text <= radius < text + 10**-digits


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_bound_is_never_shown_tighter_than_it_is(one, other):
    low, high = sorted((one, other))
    assert shown(formats.at_least(low))[0] <= 100 * low
    for form, unit, step in (
        ("percent_range", 100, 0.1),
        ("points_range", 100, 0.1),
        ("radius_range", 1, 0.001),
    ):
        below, above = shown(getattr(formats, form)((low, high)))
        assert below <= unit * low < below + 1.01 * step
        assert above - 1.01 * step < unit * high <= above
        below, above = shown(getattr(formats, form)((-high, -low)))
        assert below <= -unit * high
        assert above >= -unit * low


def test_markdown_is_shown_as_it_is():
    assert (
        formats.markdown("a|b *c* <d> _e_ `f`\n# g & h")
        == "a\\|b \\*c\\* &lt;d&gt; \\_e\\_ \\`f\\` # g &amp; h"
    )
    assert formats.markdown("[x](y)") == "\\[x\\](y)"
    assert formats.markdown("\\") == "\\\\"
    assert formats.markdown("2025-01") == "2025-01"
