"""`report/index.html` and `report/MODEL_CARD.md` from the results."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from crt.data.store import Store
from crt.errors import first_ten
from crt.files import write_text
from crt.report import content, formats
from crt.report.load import Results, load_results
from crt.report.pictures import Pictures


def write_report(
    root: Path,
    preset: str,
    drops: Sequence[str],
    roles: Sequence[str],
    out: Path,
    images: Store | None = None,
) -> None:
    """Write the page and the model card of the pipeline that ran under `root` to the folder `out`.

    Args:
        root: The folder of results/, certificates/, models/ and times/.
        preset: The preset whose settings were used.
        drops: The deliveries of training data, in the order of arrival.
        roles: The certified ones of teacher, student, baseline.
        out: The folder for index.html and MODEL_CARD.md.
        images: The certified images, for the page to show some; None: it shows none.

    The same results give the same bytes.

    Raises:
        UserError: a result is missing or damaged.
    """
    results = load_results(root, preset, drops, roles)
    pictures = None if images is None else Pictures(images)
    write_text(out / "index.html", render(results, "page.html.j2", pictures))
    write_text(out / "MODEL_CARD.md", render(results, "model_card.md.j2"))


def render(results: Results, template: str, pictures: Pictures | None = None) -> str:
    """Fill in one of the templates; HTML ones escape whatever they are given."""
    environment = Environment(
        loader=PackageLoader("crt.report", ""),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {name: getattr(formats, name) for name in formats.__all__}
    environment.filters["first_ten"] = first_ten
    return environment.get_template(template).render(results=results, content=content, pictures=pictures)
