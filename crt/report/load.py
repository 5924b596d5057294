"""Gathering what the report shows from the pipeline's result files."""

import json
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crt.errors import UserError
from crt.files import read_csv

Columns = dict[str, list[float]]

# What the page, the model card and `crt show` read of each kind of file. Another version's results may lack some.
METRICS = {
    "abstention_rate", "acr", "acr_is_lower_bound", "certified_accuracy", "certified_accuracy_lower_bound", "images",
    "interval", "median_radius", "smoothed_accuracy", "subset",
}  # fmt: skip
SETTINGS = {
    "alpha", "compile", "data_fingerprint", "device", "mode", "model_fingerprint", "n", "n0", "precision", "sigma", "versions",
}  # fmt: skip
MODEL = {
    "arch", "channels", "classes", "data_fingerprint", "image_size", "method", "resize", "seed", "teacher_fingerprint", "versions",
}  # fmt: skip
GATE = {"comparisons", "confidence", "images", "sentences", "vs_teacher", "verdict"}
PREPARED = {"classes", "duplicates", "images", "skipped", "unlabelled"}


@dataclass(frozen=True)
class Role:
    """Everything about one of teacher, student and baseline."""

    name: str
    metrics: dict[str, Any]  # results/certify/<name>.json
    settings: dict[str, Any]  # certificates/<name>.json
    model: dict[str, Any]  # models/<name>/model.json
    training: dict[str, Any]  # results/<name>.json; empty for the baseline
    history: Columns  # results/<name>/training.tsv, one entry per epoch; empty for the baseline
    curve: Columns
    ecdf: Columns


@dataclass(frozen=True)
class Results:
    """Everything that the report shows."""

    roles: list[Role]  # teacher, student, and the baseline when one is pinned
    gate: dict[str, Any]
    data: dict[str, dict[str, Any]]  # results/prepare/<drop>.json, in the order of arrival; the test set last

    def role(self, name: str) -> Role:
        """The role of that name."""
        return next(role for role in self.roles if role.name == name)


def load_results(root: Path, drops: Sequence[str]) -> Results:
    """Read the results of a pipeline that ran under `root` on `drops`.

    Raises:
        UserError: a file is missing or damaged.
    """
    roles = [
        _role(root, name, trained=name != "baseline")
        for name in ("teacher", "student", "baseline")
        if _pinned(root, name)
    ]
    prepared = root / "results/prepare"
    data = {name: read_json(prepared / f"{name}.json", PREPARED) for name in (*drops, "test")}
    return Results(roles, read_json(root / "results/gate.json", GATE), data)


def _pinned(root: Path, name: str) -> bool:
    return read_json(root / "results/certify" / f"{name}.json").get("pinned", True) is not False


def _role(root: Path, name: str, trained: bool) -> Role:
    certify = root / "results/certify"
    return Role(
        name=name,
        metrics=read_json(certify / f"{name}.json", METRICS),
        settings=read_json(root / "certificates" / f"{name}.json", SETTINGS),
        model=read_json(root / "models" / name / "model.json", MODEL),
        training=read_json(root / "results" / f"{name}.json") if trained else {},
        history=_columns(root / "results" / name / "training.tsv", "\t") if trained else {},
        curve=_columns(certify / "curves" / f"{name}.csv"),
        ecdf=_columns(certify / "ecdf" / f"{name}.csv"),
    )


def read_json(path: Path, keys: Set[str] = frozenset()) -> dict[str, Any]:
    """A result file, which has `keys`.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): delete it and run `dvc repro`") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: delete it and run `dvc repro`")
    if lacking := sorted(keys - content.keys()):
        raise UserError(f"{path} lacks {', '.join(lacking)}: delete it and run `dvc repro`")
    return content


def _columns(path: Path, delimiter: str = ",") -> Columns:
    """Columns of numbers; an empty cell is NaN."""
    try:
        columns = read_csv(path, delimiter)
        return {
            name: [float(cell) if cell else math.nan for cell in cells] for name, cells in columns.items()
        }
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run `dvc repro`") from None
