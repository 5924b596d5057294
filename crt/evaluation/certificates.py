"""Reading a certificates file: one row per test image, and the settings beside it."""

import json
import warnings
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from crt.errors import UserError

# The header. It is stated here a second time, so that reading depends on nothing that certifies.
COLUMNS = (
    "idx", "label", "predict", "radius", "correct", "time", "name", "n_a", "n", "p_lower", "status", "image"
)  # fmt: skip
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
_WHOLE = ("idx", "label", "predict", "n_a", "n")
_REAL = ("radius", "time", "p_lower")
_OPTIONAL = ("radius", "p_lower")  # empty where a row claims nothing
_LARGEST = 2**53  # whole numbers below it are exact in float64


@dataclass(frozen=True)
class Certificates:
    """Certificates of one classifier on one test set, ordered by image; all arrays have shape [N].

    `radius` is in [0,1] pixel units. It is 0 where the row carries no certificate, and `p_lower` where
    nothing was estimated.
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
    image: list[str]  # equal for equal images, whose certificates are of the same noise

    def __len__(self) -> int:
        return len(self.idx)

    @property
    def radii(self) -> list[float]:
        """The radii to report, ascending."""
        return [float(radius) for radius in self.settings["radii"]]

    @property
    def noise(self) -> str | None:
        """The kind of noise that the votes were counted under; None: version 0.1.0's, without a name."""
        noise = self.settings.get("noise")
        return str(noise.get("kind")) if isinstance(noise, dict) else None

    @property
    def largest_radius(self) -> float:
        """What n draws certify when all agree: sigma * Phi^-1(alpha^(1/n))."""
        return float(self.settings["sigma"] * ndtri(self.settings["alpha"] ** (1 / self.settings["n"])))

    @property
    def right_radius(self) -> NDArray[np.float64]:
        """Radius times correct [N], the quantity whose mean is the ACR."""
        return np.where(self.correct, self.radius, 0.0)

    @property
    def once(self) -> NDArray[np.bool_]:
        """Which images [N] are the first of those that are equal to them.

        Equal images have one certificate, and fail together.
        """
        first = np.zeros(len(self), dtype=np.bool_)
        first[np.unique(np.array(self.image), return_index=True)[1]] = True
        return first

    def take(self, rows: NDArray[np.intp]) -> "Certificates":
        """The given rows, in the given order."""
        columns: dict[str, Any] = {
            field.name: value[rows] if isinstance(value, np.ndarray) else [value[row] for row in rows]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray | list)
        }
        return replace(self, **columns)

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
        raise UserError(f"{path} is missing: certify the model again") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): certify the model again") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no JSON object: certify the model again")
    return settings


def read_certificates(tsv: Path) -> Certificates:
    """Read and check a certificates file and the JSON beside it. Numbers keep their full precision.

    Raises:
        UserError: a file is missing or damaged; the sentence names the line.
    """
    settings = read_settings(tsv)
    for key, types in SETTINGS.items():
        if not isinstance(settings.get(key), types) or isinstance(settings.get(key), bool):
            what = f"has no valid {key!r}" if key in settings else f"lacks {key!r}"
            raise UserError(f"{tsv.with_suffix('.json')} {what}: certify the model again")
    cells = _cells(tsv)
    numbers = _checked_numbers(tsv, cells)
    order = numbers.idx.argsort()
    cells, numbers = cells.iloc[order], numbers.iloc[order]
    whole = numbers[[*_WHOLE]].astype(np.int64)
    certificates = Certificates(
        source=str(tsv),
        settings=settings,
        idx=whole.idx.to_numpy(),
        label=whole.label.to_numpy(),
        predict=whole.predict.to_numpy(),
        radius=numbers.radius.to_numpy(),
        correct=(cells.correct == "1").to_numpy(),
        seconds=numbers.time.to_numpy(),
        name=cells["name"].tolist(),
        n_a=whole.n_a.to_numpy(),
        n=whole.n.to_numpy(),
        p_lower=numbers.p_lower.to_numpy(),
        status=cells.status.to_numpy(np.str_),
        image=cells.image.tolist(),
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
            f"{certificates.settings['sigma']} allow: delete the file and certify the model again"
        )


def _cells(tsv: Path) -> pd.DataFrame:
    """The file's cells as text, one row per image, in the order of its lines.

    Raises:
        UserError: it is missing, no table of these columns, or holds no row.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a first row with too many cells
            cells = pd.read_csv(
                tsv, sep="\t", dtype=str, na_filter=False, index_col=False, skip_blank_lines=False
            )
    except FileNotFoundError:
        raise UserError(f"{tsv} is missing: certify the model") from None
    except pd.errors.EmptyDataError:
        cells = pd.DataFrame()
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{tsv} is damaged ({reason}): delete the file and certify the model again") from None
    if tuple(cells.columns) == COLUMNS[:-1]:  # version 0.1.0 named no images: each counts as another
        cells["image"] = [f"{place:032x}" for place in range(len(cells))]
    if tuple(cells.columns) != COLUMNS:
        raise UserError(f"{tsv}: line 1 is not the header {' '.join(COLUMNS)}: certify the model again")
    if cells.empty:
        raise UserError(f"{tsv} holds no image: certify the model again")
    return cells


def _checked_numbers(tsv: Path, cells: pd.DataFrame) -> pd.DataFrame:
    """The columns of numbers as float64, each row held to what its columns say of each other.

    Raises:
        UserError: names the first line that breaks a rule.
    """
    texts = cells[[*_WHOLE, *_REAL]].copy()
    texts[[*_OPTIONAL]] = texts[[*_OPTIONAL]].replace("", "0")
    v = texts.apply(pd.to_numeric, errors="coerce")  # what is no number is NaN, and NaN keeps no rule
    certified, abstained = cells.status == "certified", cells.status == "abstained"
    whole = ((v[[*_WHOLE]] % 1 == 0) & (v[[*_WHOLE]].abs() < _LARGEST)).all(axis=1)
    in_range = (v[["idx", "label", "n_a"]] >= 0).all(axis=1) & (v.n_a <= v.n) & v.p_lower.between(0, 1)
    rules = {
        f"status is {{status!r}}, none of {', '.join(STATUSES)}": cells.status.isin(STATUSES),
        "correct is {correct!r}, neither 0 nor 1": cells.correct.isin(["0", "1"]),
        "not all whole numbers: idx {idx}, label {label}, predict {predict}, n_a {n_a}, n {n}": whole,
        "a value is out of range": in_range & v.time.between(0, inf, inclusive="left"),
        "radius is {radius}": v.radius.between(0, inf, inclusive="left"),
        "image {idx} appears twice": ~v.idx.duplicated(),
        "predict is {predict} but status is {status}": v.predict.ge(-1) & (v.predict.eq(-1) == abstained),
        "correct is {correct} but predict is {predict}, label {label}, status {status}": (
            (cells.correct == "1") == (certified & (v.predict == v.label))
        ),
        "a certified image needs a radius and a p_lower of at least 1/2": (
            ~certified | ((cells.radius != "") & (v.p_lower >= 0.5))
        ),
        "an image that is {status} has a radius": certified | (v.radius == 0),
        "image is {image!r}, no hash of pixels": cells.image.str.fullmatch("[0-9a-f]{32}"),
    }
    for fault, kept in rules.items():
        if not kept.all():
            row = int(kept.to_numpy().argmin())
            reason = fault.format(**cells.iloc[row])[:200]
            raise UserError(
                f"{tsv}: line {row + 2} is damaged ({reason}): delete the file and certify the model again"
            )
    v[[*_REAL]] = texts[[*_REAL]].astype(np.float64)  # exact in every version of pandas
    return v
