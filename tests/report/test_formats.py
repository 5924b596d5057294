import math

import pytest

from crt.report import formats


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (("percent", 0.71449), "71.4 %"),
        (("percent", 1.0), "100.0 %"),
        (("percent", None), "–"),
        (("percent", math.nan), "–"),
        (("percent_range", (0.6614, 0.7576)), "66.1 – 75.8 %"),
        (("points", 0.0123), "+1.2"),
        (("points", -0.0123), "−1.2"),
        (("points", -0.0001), "0.0"),
        (("points_range", (-0.014, 0.006)), "−1.4 … +0.6"),
        (("radius", 0.24961), "0.250"),
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
    name, value = call
    assert getattr(formats, name)(value) == text


def test_markdown_is_shown_as_it_is():
    assert (
        formats.markdown("a|b *c* <d> _e_ `f`\n# g & h")
        == "a\\|b \\*c\\* &lt;d&gt; \\_e\\_ \\`f\\` # g &amp; h"
    )
    assert formats.markdown("[x](y)") == "\\[x\\](y)"
    assert formats.markdown("\\") == "\\\\"
    assert formats.markdown("2025-01") == "2025-01"
