"""Reading a certificates file: one row per test image, and the settings beside it."""

import csv
import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from crt.certification.table import COLUMNS
from crt.errors import UserError

STATUSES = ("certified", "abstained", "misclassified")
SETTINGS = {
    "sigma": (int, float),
    "alpha": (int, float),
    "n0": (int,),
    "n": (int,),
    "mode": (str,),
    "radii": (list,),
    "stride": (int,),
    "max_images": (int, type(None)),
    "seconds": (int, float),
    "forward_passes": (int,),
}


@dataclass(frozen=True)
class Certificates:
    """Certificates of one classifier on one test set, ordered by image; all arrays have shape [N].

    `radius` is in [0,1] pixel units; it is 0 where the row carries no certificate, `p_lower` where nothing was estimated.
    """

    source: str  # the file, for messages
    settings: dict[str, Any]  # the JSON beside the file
    idx: NDArray[np.int64]  # place in the prepared test set
    label: NDArray[np.int64]
    predict: NDArray[np.int64]  # -1: abstained
    radius: NDArray[np.float64]
    correct: NDArray[np.bool_]
    seconds: NDArray[np.float64]
    name: list[str]
    n_a: NDArray[np.int64]  # votes for the predicted class among n
    n: NDArray[np.int64]
    p_lower: NDArray[np.float64]  # lower confidence bound of the predicted class' probability
    status: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.idx)

    @property
    def radii(self) -> list[float]:
        """The radii to report, ascending."""
        return [float(radius) for radius in self.settings["radii"]]

    @property
    def largest_radius(self) -> float:
        """What n draws certify when all agree: sigma * Phi^-1(alpha^(1/n))."""
        return float(self.settings["sigma"] * ndtri(self.settings["alpha"] ** (1 / self.settings["n"])))

    @property
    def right_radius(self) -> NDArray[np.float64]:
        """Radius times correct [N], the quantity whose mean is the ACR."""
        return np.where(self.correct, self.radius, 0.0)

    def right_at(self, radius: float) -> NDArray[np.bool_]:
        """Which images [N] have a certificate that is right and reaches `radius`."""
        return self.correct & (self.radius >= radius)


def read_settings(tsv: Path) -> dict[str, Any]:
    """The JSON beside a certificates file.

    Raises:
        UserError: it is missing or no JSON object.
    """
    path = tsv.with_suffix(".json")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the certify stage again") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): run the certify stage again") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no JSON object: run the certify stage again")
    return settings


def read_certificates(tsv: Path) -> Certificates:
    """Read and check a certificates file and the JSON beside it.

    Raises:
        UserError: a file is missing or damaged; the sentence names the line.
    """
    settings = read_settings(tsv)
    for key, types in SETTINGS.items():
        if not isinstance(settings.get(key), types) or isinstance(settings.get(key), bool):
            what = f"has no valid {key!r}" if key in settings else f"lacks {key!r}"
            raise UserError(f"{tsv.with_suffix('.json')} {what}: run the certify stage again")
    rows = _rows(tsv)
    if not rows:
        raise UserError(f"{tsv} holds no image: run the certify stage again")
    rows.sort(key=lambda row: row[0])
    idx, label, predict, radius, correct, seconds, name, n_a, n, p_lower, status = zip(*rows, strict=True)
    certificates = Certificates(
        source=str(tsv),
        settings=settings,
        idx=np.array(idx, dtype=np.int64),
        label=np.array(label, dtype=np.int64),
        predict=np.array(predict, dtype=np.int64),
        radius=np.array(radius, dtype=np.float64),
        correct=np.array(correct, dtype=np.bool_),
        seconds=np.array(seconds, dtype=np.float64),
        name=list(name),
        n_a=np.array(n_a, dtype=np.int64),
        n=np.array(n, dtype=np.int64),
        p_lower=np.array(p_lower, dtype=np.float64),
        status=np.array(status, dtype=np.str_),
    )
    _check_radii(certificates)
    return certificates


def _check_radii(certificates: Certificates) -> None:
    """No radius exceeds sigma * Phi^-1(p_lower) (Cohen et al. 2019, theorem 1), rounding aside.

    Raises:
        UserError: one does, so that the file and its JSON are not of the same run.
    """
    certified = certificates.status == "certified"
    largest = certificates.settings["sigma"] * ndtri(certificates.p_lower)
    wrong = certificates.idx[certified & (certificates.radius > largest * (1 + 1e-6) + 1e-9)]
    if len(wrong):
        raise UserError(
            f"{certificates.source}: the radius of image {wrong[0]} is larger than its p_lower and sigma "
            f"{certificates.settings['sigma']} allow: delete the file and run the certify stage again"
        )


def _rows(tsv: Path) -> list[tuple[Any, ...]]:
    """The parsed rows in file order."""
    rows: list[tuple[Any, ...]] = []
    seen: set[int] = set()
    try:
        with tsv.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, dialect="excel-tab", strict=True)
            if tuple(next(reader, ())) != COLUMNS:
                raise UserError(
                    f"{tsv}: line 1 is not the header {' '.join(COLUMNS)}: run the certify stage again"
                )
            for texts in reader:
                try:
                    row = _row(texts)
                    if row[0] in seen:
                        raise ValueError(f"image {row[0]} appears twice")
                except ValueError as error:
                    raise UserError(
                        f"{tsv}: line {reader.line_num} is damaged ({error}): delete the file and run the certify stage again"
                    ) from None
                seen.add(row[0])
                rows.append(row)
    except FileNotFoundError:
        raise UserError(f"{tsv} is missing: run the certify stage") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{tsv} is damaged ({error}): delete the file and run the certify stage again"
        ) from None
    return rows


def _row(texts: list[str]) -> tuple[Any, ...]:
    """Parse one row and check that its columns agree with each other.

    Raises:
        ValueError: they do not.
    """
    if len(texts) != len(COLUMNS):
        raise ValueError(f"{len(texts)} columns instead of {len(COLUMNS)}")
    cell = dict(zip(COLUMNS, texts, strict=True))
    idx, label, predict, n_a, n = (int(cell[column]) for column in ("idx", "label", "predict", "n_a", "n"))
    radius, p_lower = (float(cell[column] or 0) for column in ("radius", "p_lower"))
    seconds, status = float(cell["time"]), cell["status"]
    if cell["correct"] not in ("0", "1"):
        raise ValueError(f"correct is {cell['correct']!r}, neither 0 nor 1")
    correct = cell["correct"] == "1"
    if status not in STATUSES:
        raise ValueError(f"status is {status!r}, none of {', '.join(STATUSES)}")
    if idx < 0 or label < 0 or not 0 <= seconds < inf or not 0 <= n_a <= n or not 0 <= p_lower <= 1:
        raise ValueError("a value is out of range")
    if not 0 <= radius < inf:
        raise ValueError(f"radius is {cell['radius']}")
    if (predict == -1) != (status == "abstained") or predict < -1:
        raise ValueError(f"predict is {predict} but status is {status}")
    if correct != (status == "certified" and predict == label):
        raise ValueError(
            f"correct is {cell['correct']} but predict is {predict}, label {label}, status {status}"
        )
    if status == "certified" and not (cell["radius"] and p_lower >= 0.5):
        raise ValueError("a certified image needs a radius and a p_lower of at least 1/2")
    if status != "certified" and radius > 0:
        raise ValueError(f"an image that is {status} has a radius")
    return idx, label, predict, radius, correct, seconds, cell["name"], n_a, n, p_lower, status
