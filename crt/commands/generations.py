"""`crt generations`: one student after the other from the same teacher, as DVC experiments, and one table of them.

Each runs in a folder of its own (`dvc exp run --temp`), so that the workspace stays as it is. What is there already, with the
same parameters, is not run again: after a kill or a failure the same command goes on.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from crt.commands.compose import composed
from crt.commands.dataset import dvc
from crt.commands.tables import aligned
from crt.errors import UserError
from crt.report import formats

Experiment = dict[str, Any]  # one of `dvc exp show --json`: params, metrics


def generations(root: Path, students: Sequence[str], overrides: Sequence[str]) -> None:
    """Run every student that has not run yet, and print the table.

    students: options of conf/student/, all of them if empty; overrides: Hydra's, for all students alike.

    Raises:
        UserError: an override chooses a student, an option does not exist or does not fit, or a student failed
            (after all others have run).
    """
    students = list(students) or sorted(path.stem for path in (root / "conf/student").glob("[!_]*.yaml"))
    if chosen := [value for value in overrides if value.partition("=")[0].lstrip("+") == "student"]:
        raise UserError(f"{chosen[0]} is for all students: name the students instead, `crt generations ...`")
    # All are composed before the first runs.
    wanted = {student: _params(root, student, overrides) for student in students}
    there, failed = _experiments(root), []
    for student, params in wanted.items():
        if _find(there, params) is not None:
            print(f"{student}: is there already", file=sys.stderr)
            continue
        print(f"{student}: `dvc exp run`", file=sys.stderr, flush=True)
        settings = [part for value in (f"student={student}", *overrides) for part in ("-S", value)]
        command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", *settings]
        if subprocess.run(command, cwd=root, stdout=sys.stderr).returncode:
            failed.append(student)
    found = _experiments(root)
    for line in table({student: _find(found, params) for student, params in wanted.items()}, found):
        print(line)
    if failed:
        raise UserError(
            f"{', '.join(failed)} failed, its message stands above: mend that and run the same command again"
        )


def table(chosen: dict[str, Experiment | None], others: Sequence[Experiment]) -> list[str]:
    """Aligned lines, one per student; what is not known is a dash.

    `cost` is the student's training time over that of direct training of the same network, where an experiment among
    `others` trained it so (`-S method=consistency`).
    """
    radii: list[str] = []
    for experiment in chosen.values():
        accuracy = _metric(experiment, "results/certify/student.json", "certified_accuracy") or {}
        radii += [radius for radius in accuracy if radius not in radii]
    rows = [
        ["student", "architecture", "parameters", "training", "ACR", "share of teacher", *(f"at {r}" for r in radii), "cost"]
    ]  # fmt: skip
    for student, experiment in chosen.items():
        results = "results/certify/student.json"
        accuracy = _metric(experiment, results, "certified_accuracy") or {}
        share = _metric(experiment, "results/gate.json", "vs_teacher", "acr_share")
        seconds = _metric(experiment, "results/student.json", "train_seconds")
        cost = _cost(experiment, others)
        rows.append(
            [
                student,
                _param(experiment, "student", "arch") or formats.MISSING,
                formats.count(_metric(experiment, "results/student.json", "parameters")),
                formats.duration(seconds),
                formats.radius(_metric(experiment, results, "acr")),
                formats.MISSING if share is None else f"{share:.3f}",
                *(formats.percent(accuracy.get(radius)) for radius in radii),
                formats.MISSING if cost is None else f"{cost:.2f}",
            ]
        )
    return aligned(rows, left=2)


def _params(root: Path, student: str, overrides: Sequence[str]) -> dict[str, Any]:
    text, _ = composed(root, [f"student={student}", *overrides])
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def _experiments(root: Path) -> list[Experiment]:
    """The experiments on HEAD that ended well."""
    shown = json.loads(dvc(root, "exp", "show", "--json"))
    revisions = [
        experiment["revs"][0]
        for baseline in shown
        if baseline["rev"] != "workspace"
        for experiment in baseline["experiments"] or []
        if experiment["revs"]
    ]
    return [one["data"] for one in revisions if one.get("data") and not one.get("error")]


def _find(experiments: Sequence[Experiment], params: dict[str, Any]) -> Experiment | None:
    """The experiment with exactly these parameters, whose results are there."""
    for experiment in experiments:
        same = _param(experiment) == params
        if same and _metric(experiment, "results/certify/student.json", "acr") is not None:
            return experiment
    return None


def _cost(experiment: Experiment | None, others: Sequence[Experiment]) -> float | None:
    """Training time over that of direct training: the same student, whose method is no transfer."""
    seconds = _metric(experiment, "results/student.json", "train_seconds")
    if seconds is None or _param(experiment, "method", "name") != "crt":
        return None
    for other in others:
        direct = _param(other, "method", "name") not in ("crt", None)
        if direct and _param(other, "student") == _param(experiment, "student"):
            against = _metric(other, "results/student.json", "train_seconds")
            return seconds / against if against else None
    return None


def _metric(experiment: Experiment | None, file: str, *keys: str) -> Any:
    return _get(experiment, "metrics", file, "data", *keys)


def _param(experiment: Experiment | None, *keys: str) -> Any:
    return _get(experiment, "params", "params.yaml", "data", *keys)


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
