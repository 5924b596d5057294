"""`crt generations`: several students of the same teacher, as DVC experiments, and one table of them.

Each runs in a folder of its own (`dvc exp run --temp`), so that the workspace stays as it is. What is there
already, with the same parameters, is not run again: after a kill or a failure the same command goes on.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from crt.commands.tables import as_text
from crt.errors import UserError
from crt.project import Project
from crt.project.choice import get
from crt.project.takeover import take_over
from crt.report import formats

ACR = ("results/certify/student.json", "data", "acr")


@dataclass(frozen=True)
class Experiment:
    """One that ended well: its parameters, its metrics by file, and what else is read from its commit."""

    params: dict[str, Any]
    metrics: dict[str, Any]
    parameters: int | None = None  # of the student
    seconds: float | None = None  # of its training


def generations(project: Project, students: Sequence[str], overrides: Sequence[str]) -> None:
    """Run every student that has not run yet, and print the table.

    Args:
        project: The repository.
        students: Options of conf/student/; empty: all that need no further choice.
        overrides: Hydra's, for all students alike.

    Raises:
        UserError: An override chooses a student, an option does not exist or does not fit, or a student
            failed (after all others have run).
    """
    take_over(project)
    students = list(students) or [name for name in project.conf.options("student") if name != "timm"]
    if chosen := [value for value in overrides if value.partition("=")[0].lstrip("+") == "student"]:
        raise UserError(f"{chosen[0]} is for all students: name the students instead, `crt generations ...`")
    # All are composed before the first runs.
    wanted = {student: _params(project, student, overrides) for student in students}
    there, failed = _experiments(project), []
    for student, params in wanted.items():
        if _find(there, params) is not None:
            print(f"{student}: is there already", file=sys.stderr)
            continue
        print(f"{student}: `dvc exp run`", file=sys.stderr, flush=True)
        settings = [part for value in (f"student={student}", *overrides) for part in ("-S", value)]
        command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", *settings]
        if subprocess.run(command, cwd=project.root, stdout=sys.stderr).returncode:
            failed.append(student)
    found = _experiments(project)
    print(table({student: _find(found, params) for student, params in wanted.items()}, found))
    if failed:
        raise UserError(
            f"{', '.join(failed)} failed, its message stands above: fix that and run the same command again"
        )


def table(chosen: dict[str, Experiment | None], others: Sequence[Experiment]) -> str:
    """One row per student; what is not known is a dash.

    `cost` is the student's training time over that of direct training of the same network, where an
    experiment among `others` trained it so (`-S method=consistency`).
    """
    import pandas as pd

    rows = []
    for experiment in chosen.values():
        metrics = get(experiment and experiment.metrics, ACR[:2], {})
        teacher = get(
            experiment and experiment.metrics, ("results/certify/teacher.json", "data", "teacher_acr")
        )
        share = metrics["acr"] / teacher if metrics and teacher else None
        cost = _cost(experiment, others)
        rows.append(
            {
                "architecture": get(experiment and experiment.params, ("student", "arch"), formats.MISSING),
                "parameters": formats.count(experiment.parameters if experiment else None),
                "training": formats.duration(experiment.seconds if experiment else None),
                "ACR": formats.radius(metrics.get("acr")),
                "share of teacher": formats.MISSING if share is None else f"{share:.3f}",
                "smoothed": formats.percent(metrics.get("smoothed_acc")),
            }
            | {
                f"at {key.removeprefix('cert_')}": formats.percent(value)
                for key, value in metrics.items()
                if key.startswith("cert_")
            }
            | {"cost": formats.MISSING if cost is None else f"{cost:.2f}"}
        )
    frame = pd.DataFrame(rows, index=list(chosen)).fillna(formats.MISSING)
    frame["cost"] = frame.pop("cost")  # the last, whoever came first
    return as_text(frame.rename_axis(columns="student"))


def _params(project: Project, student: str, overrides: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(project.composed([f"student={student}", *overrides])[0].text)
    return found


def _experiments(project: Project) -> list[Experiment]:
    """The experiments on HEAD that ended well."""
    shown = json.loads(project.dvc("exp", "show", "--json"))
    revisions = [
        experiment["revs"][0]
        for baseline in shown
        if baseline["rev"] != "workspace"
        for experiment in baseline["experiments"] or []
        if experiment["revs"]
    ]
    return [
        _experiment(project, one["rev"], one["data"])
        for one in revisions
        if one.get("data") and not one.get("error")
    ]


def _experiment(project: Project, revision: str, data: dict[str, Any]) -> Experiment:
    found = {}
    for name in ("results/student.json", "times/student.json"):
        try:
            found[name] = json.loads(project.read_at(revision, name))
        except (UserError, ValueError):  # not there, or another machine's
            found[name] = {}
    return Experiment(
        params=get(data, ("params", "params.yaml", "data"), {}),
        metrics=data.get("metrics") or {},
        parameters=found["results/student.json"].get("parameters"),
        seconds=found["times/student.json"].get("seconds"),
    )


def _find(experiments: Sequence[Experiment], params: dict[str, Any]) -> Experiment | None:
    """The experiment with exactly these parameters, whose results are there."""
    for experiment in experiments:
        if experiment.params == params and get(experiment.metrics, ACR) is not None:
            return experiment
    return None


def _cost(experiment: Experiment | None, others: Sequence[Experiment]) -> float | None:
    """Training time over that of direct training: the same student, whose method is no transfer."""
    if experiment is None or experiment.seconds is None or _method(experiment) != "crt":
        return None
    for other in others:
        if _method(other) not in ("crt", None) and other.params.get("student") == experiment.params.get(
            "student"
        ):
            return experiment.seconds / other.seconds if other.seconds else None
    return None


def _method(experiment: Experiment) -> Any:
    return get(experiment.params, ("method", "name"))
