"""`crt show`: the results of the last run, side by side, and where to look further."""

from pathlib import Path

from crt import config
from crt.commands.tables import aligned
from crt.report import formats
from crt.report.load import Results, load_results


def show(root: Path) -> None:
    """Print the table of the results under `root`.

    Raises:
        UserError: there are none yet.
    """
    settings = config.load(root / "params.yaml")
    results = load_results(root, settings.preset, settings.data.drops, settings.certified)
    for line in table(results):
        print(line)
    print()
    print(" ".join(results.gate["sentences"]))
    print(f"Report: {(root / 'report/index.html').resolve()}")
    print("Plots:  dvc plots show --open      Compare: dvc metrics diff, dvc exp show")


def table(results: Results) -> list[str]:
    """Aligned lines: one row per quantity, one column per classifier."""
    roles = results.roles
    rows: list[list[str]] = [["", *(role.name for role in roles)]]
    rows.append(["architecture", *(role.model["arch"] for role in roles)])
    bound = " (at least)" if roles[0].metrics["acr_is_lower_bound"] else ""
    rows.append([f"ACR{bound}", *(formats.radius(role.metrics["acr"]) for role in roles)])
    rows.append(
        ["smoothed accuracy", *(formats.percent(role.metrics["smoothed_accuracy"]) for role in roles)]
    )
    for key in roles[0].metrics["certified_accuracy"]:
        shares = (role.metrics["certified_accuracy"].get(key) for role in roles)
        rows.append([f"certified accuracy at {key}", *(formats.percent(share) for share in shares)])
    rows.append(["abstained", *(formats.percent(role.metrics["abstention_rate"]) for role in roles)])
    rows.append(["training", *(formats.duration(role.times.get("seconds")) for role in roles)])
    rows.append(["parameters", *(formats.count(role.training.get("parameters")) for role in roles)])
    return aligned(rows, left=1)
