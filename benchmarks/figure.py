"""The README's figure, certified accuracy over the radius, out of the report of the last run.

    python benchmarks/figure.py [--report report/index.html] [--out docs/images/certified_accuracy.svg]

An image of its own has none of the report's styles, so they are put in, for light and dark pages.
"""

import argparse
import re
from pathlib import Path

STYLE = """<style>
svg { --text: #1c2530; --soft: #5a6675; --back: #ffffff; --rule: #d9dfe6; --teacher: #0072b2; --student: #c44f00; }
@media (prefers-color-scheme: dark) {
  svg { --text: #e4e9ee; --soft: #9eabb8; --back: #12171c; --rule: #333d47; --teacher: #56b4e9; --student: #f0914a; }
}
text { fill: var(--text); font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.ground { fill: var(--back); } .axis { stroke: var(--soft); fill: none; } .grid { stroke: var(--rule); fill: none; }
.line { fill: none; stroke-width: 2.25; stroke-linejoin: round; } .line.teacher { stroke-dasharray: 8 4; }
.whisker { stroke-width: 2; fill: none; } .mark { stroke: var(--back); }
.line.student, .whisker.student { stroke: var(--student); } .mark.student { fill: var(--student); }
.line.teacher, .whisker.teacher { stroke: var(--teacher); } .mark.teacher { fill: var(--teacher); }
</style><rect class="ground" width="480" height="320"/>"""
LEGEND = (
    '<path class="line teacher" d="M96 232h32"/><text x="136" y="236">teacher</text>'
    '<path class="line student" d="M96 252h32"/><text x="136" y="256">student</text>'
)


def standalone(page: str) -> str:
    """The report's figure of certified accuracies as an SVG file."""
    figures = re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)
    figure = next(one for one in figures if 'id="accuracy-title"' in one)
    figure = figure.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="480" height="320" ', 1)
    return figure.replace("</desc>", f"</desc>{STYLE}", 1).replace("</svg>", f"{LEGEND}</svg>\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, default=Path("report/index.html"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/certified_accuracy.svg"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(standalone(arguments.report.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
