"""`crt show`: the results of the last run, side by side; `crt experiments`: those of all experiments."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from crt.commands.tables import as_text
from crt.project import Project
from crt.project.choice import dotted, leaves
from crt.project.takeover import NAMES, difference
from crt.report import formats
from crt.report.load import Results, load_results


def show(project: Project) -> None:
    """Print the table of the results.

    Raises:
        UserError: There are none yet.
    """
    params = project.params
    results = load_results(project.root, params.preset, params.data.drops, params.certified)
    print(table(results))
    print()
    print(f"Gate: {results.gate['verdict']}. {' '.join(results.gate['sentences'])}")
    print(f"Report: {(project.root / 'report/index.html').resolve()}")
    print("Plots:  dvc plots show --open      Compare: dvc metrics diff, crt experiments")
    if said := difference(project):
        print(f"params.yaml differs from conf/: {said} (`crt compose` makes them agree)", file=sys.stderr)


def experiments(project: Project, arguments: Sequence[str]) -> None:
    """Print DVC's table of the experiments on the last commit: metrics, and parameters that differ.

    What only follows from the chosen option, such as a student's learning rate, is left out, and so are
    hashes and times.

    Args:
        project: The repository.
        arguments: Further ones for `dvc exp show`.
    """
    import pandas as pd

    shown = ["exp", "show", "--only-changed"]
    text = project.dvc(*shown, "--csv")
    table: dict[Any, list[str]] = pd.read_csv(io.StringIO(text), dtype=str).fillna("").to_dict("list")
    left_out = ["Created", *_following(project, table), *_hashes(project, table)]
    drop = [part for column in left_out for part in ("--drop", f"{re.escape(column)}$")]
    subprocess.run([sys.executable, "-m", "dvc", *shown, *drop, *arguments], cwd=project.root, check=False)


def _following(project: Project, table: dict[Any, list[str]]) -> Iterator[str]:
    """The columns of parameters that in each row are those of the option that the row names."""
    for group in ("teacher", "student", "method"):
        name = dotted(NAMES[group])
        if name not in table:
            continue
        options = {}
        for option in set(table[name]) & set(project.conf.options(group)):
            choice = project.choice
            project.conf.forget(choice, group, project.conf.options(group))
            choice.options[group] = option
            values = project.conf.compose(choice).values
            options[option] = {
                dotted(path): "" if value is None else str(value) for path, value in leaves(values)
            }
        for column in table:
            if column.startswith(f"{group}.") and column != name:
                rows = zip(table[name], table[column], strict=True)
                if all(options.get(option, {}).get(column, "") == value for option, value in rows):
                    yield column


def _hashes(project: Project, table: dict[Any, list[str]]) -> list[str]:
    """The columns of stages' dependencies."""
    lock = project.root / "dvc.lock"
    record = yaml.safe_load(lock.read_text(encoding="utf-8")) if lock.exists() else {}
    paths = {dep["path"] for stage in record.get("stages", {}).values() for dep in stage.get("deps", [])}
    return [column for column in table if column in paths]


def table(results: Results) -> str:
    """One row per quantity, one column per classifier."""
    import pandas as pd

    roles = results.roles
    bound = " (at least)" if roles[0].metrics["acr_is_lower_bound"] else ""
    rows = {
        "architecture": [role.model["arch"] for role in roles],
        f"ACR{bound}": [formats.radius(role.metrics["acr"]) for role in roles],
        "smoothed accuracy": [formats.percent(role.metrics["smoothed_accuracy"]) for role in roles],
    }
    for key in roles[0].metrics["certified_accuracy"]:
        shares = (role.metrics["certified_accuracy"].get(key) for role in roles)
        rows[f"certified accuracy at {key}"] = [formats.percent(share) for share in shares]
    rows["abstained"] = [formats.percent(role.metrics["abstention_rate"]) for role in roles]
    rows["training"] = [formats.duration(role.times.get("seconds")) for role in roles]
    rows["parameters"] = [formats.count(role.training.get("parameters")) for role in roles]
    return as_text(pd.DataFrame.from_dict(rows, orient="index", columns=[role.name for role in roles]))
