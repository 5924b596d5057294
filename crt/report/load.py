"""Gathering what the report shows from the pipeline's result files."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crt.errors import DamagedFileError, MissingFileError
from crt.history import History, read_history

ORDER = ("teacher", "student", "baseline")

Columns = dict[str, list[float]]

# What the page, the model card and `crt show` read of each kind of file. Another version's results may lack
# some.
METRICS = {
    "abstention_rate", "acr", "acr_is_lower_bound", "certified_accuracy", "certified_accuracy_lower_bound",
    "images", "interval", "median_radius", "smoothed_accuracy", "subset",
}  # fmt: skip
SETTINGS = {
    "alpha", "compile", "data_fingerprint", "device", "mode", "model_fingerprint", "n", "n0", "precision",
    "sigma", "versions",
}  # fmt: skip
MODEL = {
    "arch", "channels", "classes", "data_fingerprint", "image_size", "method", "resize", "seed",
    "teacher_fingerprint", "versions",
}  # fmt: skip
GATE = {"comparisons", "confidence", "images", "sentences", "vs_teacher", "verdict"}
CERTIFICATES = {"idx", "label", "predict", "radius", "correct", "status"}
CHANGED = {"image", "name", "label", "lost_at", "gained_at", "student_radius", "other_radius"}
PREPARED = {"classes", "duplicates", "images", "skipped", "unlabelled"}


@dataclass(frozen=True)
class Role:
    """Everything about one of teacher, student and baseline."""

    name: str
    metrics: dict[str, Any]  # results/certify/details/<name>.json
    settings: dict[str, Any]  # certificates/<name>.json
    model: dict[str, Any]  # models/<name>/model.json
    training: dict[str, Any]  # results/<name>.json; empty for the baseline
    times: dict[str, Any]  # times/<name>.json; empty for what was not trained here
    history: Columns  # results/<name>/training.tsv, one entry per epoch; empty for what was not trained here
    curve: Columns
    ecdf: Columns


@dataclass(frozen=True)
class Results:
    """Everything that the report shows."""

    preset: str  # whose settings were used
    roles: list[Role]  # teacher, student, and the baseline when one is pinned
    gate: dict[str, Any]  # results/gate/details.json
    certificates: list[dict[str, str]]  # certificates/student.tsv
    changed: list[dict[str, str]]  # certificates/changed.tsv: images that lost or gained a certificate
    history: History  # results/gate/history.json: the releases before the student, and itself at the end
    data: dict[str, dict[str, Any]]  # results/prepare/<drop>.json, in the order of arrival; the test set last

    def role(self, name: str) -> Role:
        """The role of that name."""
        return next(role for role in self.roles if role.name == name)


def load_results(root: Path, preset: str, drops: Sequence[str], roles: Iterable[str]) -> Results:
    """Read the results of a pipeline that ran under `root` with `preset`'s settings on `drops`, for `roles`.

    Raises:
        MissingFileError: A file is not there.
        DamagedFileError: A file does not hold what it should.
    """
    prepared = root / "results/prepare"
    data = {name: read_json(prepared / f"{name}.json", PREPARED) for name in (*drops, "test")}
    gate = read_json(root / "results/gate/details.json", GATE)
    certificates = _rows(root / "certificates/student.tsv", CERTIFICATES)
    changed = _rows(root / "certificates/changed.tsv", CHANGED)
    history = read_history(root / "results/gate/history.json")
    present = [_role(root, name) for name in ORDER if name in set(roles)]
    return Results(preset, present, gate, certificates, changed, history, data)


def _role(root: Path, name: str) -> Role:
    certify = root / "results/certify"
    model = read_json(root / "models" / name / "model.json", MODEL)
    has_facts = name != "baseline"
    trained = has_facts and not model.get("source")
    return Role(
        name=name,
        metrics=read_json(certify / "details" / f"{name}.json", METRICS),
        settings=read_json(root / "certificates" / f"{name}.json", SETTINGS),
        model=model,
        training=read_json(root / "results" / f"{name}.json") if has_facts else {},
        times=read_json(root / "times" / f"{name}.json") if trained else {},
        history=_columns(root / "results" / name / "training.tsv", "\t") if trained else {},
        curve=_columns(certify / "curves" / f"{name}.csv"),
        ecdf=_columns(certify / "ecdf" / f"{name}.csv"),
    )


def read_json(path: Path, keys: Set[str] = frozenset()) -> dict[str, Any]:
    """A result file, which has `keys`.

    Raises:
        MissingFileError: It is not there.
        DamagedFileError: It is no JSON object, or lacks a key.
    """
    with _reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no JSON object")
    if lacking := sorted(keys - content.keys()):
        raise _damaged(path, f"it lacks {', '.join(lacking)}")
    return content


def _rows(path: Path, columns: Set[str]) -> list[dict[str, str]]:
    """The rows of a table as text, keyed by the header, which has `columns`."""
    with _reading(path), path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
        table = [dict(zip(header, row, strict=True)) for row in rows]
    if lacking := sorted(columns - set(header)):
        raise _damaged(path, f"it lacks {', '.join(lacking)}")
    return table


def _columns(path: Path, delimiter: str = ",") -> Columns:
    """Columns of numbers; an empty cell is NaN."""
    with _reading(path), path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter=delimiter)
        columns = zip(*rows, strict=True) if rows else [()] * len(header)  # pandas would fill a cut row
        return {
            name: [float(cell) if cell else math.nan for cell in cells]
            for name, cells in zip(header, columns, strict=True)
        }


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say what is wrong with the file that is read."""
    try:
        yield
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing: make it first", path) from None
    except (ValueError, csv.Error) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged ({why}): delete it and make it again", path)
