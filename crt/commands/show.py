"""`crt show`: the results of the last run, side by side; `crt experiments`: those of all experiments."""

import subprocess
import sys

from crt.project import Project
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
    print(" ".join(results.gate["sentences"]))
    print(f"Report: {(project.root / 'report/index.html').resolve()}")
    print("Plots:  dvc plots show --open      Compare: dvc metrics diff, crt experiments")
    if said := project.difference():
        print(f"params.yaml differs from conf/: {said} (`crt compose` makes them agree)", file=sys.stderr)


def experiments(project: Project, arguments: list[str]) -> None:
    """Print the experiments on the last commit: metrics, and the parameters in which they differ."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--only-changed", *arguments]
    subprocess.run(command, cwd=project.root, check=False)


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
    return pd.DataFrame.from_dict(rows, orient="index", columns=[role.name for role in roles]).to_string()
