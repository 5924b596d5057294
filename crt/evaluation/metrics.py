"""A certificates file -> metrics, the certified accuracy curve, the distribution of p_A."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr

from crt.evaluation.certificates import Certificates, read_certificates
from crt.evaluation.intervals import exact_interval, failures_subtracted
from crt.files import write_json, write_text

CURVE_HEADER = ["radius", "certified_accuracy"]
ECDF_HEADER = ["p_lower", "share"]
CURVE_STEPS = 200


SHORT_RADII = 4  # radii that have a metric of their own


@dataclass(frozen=True)
class MetricFiles:
    """Where the metrics of one classifier are written."""

    metrics: Path  # the few that runs are compared by (JSON)
    details: Path  # all of them (JSON)
    curve: Path  # CSV
    ecdf: Path  # CSV


def write_metrics(tsv: Path, role: str, files: MetricFiles) -> None:
    """Write what a certificates file says of `role` (teacher, student, baseline).

    Raises:
        UserError: the certificates are missing or damaged.
    """
    certificates = read_certificates(tsv)
    details = compute_metrics(certificates)
    curve = pd.DataFrame(curve_of(certificates), columns=CURVE_HEADER)
    ecdf = pd.DataFrame(ecdf_of(certificates), columns=ECDF_HEADER)
    for out, table in ((files.curve, curve), (files.ecdf, ecdf)):
        write_text(out, table.to_csv(index=False, lineterminator="\n"))
    write_json(files.details, details)
    write_json(files.metrics, short_metrics(role, details))


def short_metrics(role: str, details: Mapping[str, Any]) -> dict[str, float]:
    """The metrics under short names, each of which occurs for one role only (columns of a table of runs).

    For the student: acr, smoothed_acc and cert_<radius>, the certified accuracy at the first four positive
    radii. For the others: their ACR.
    """
    if role != "student":
        return {f"{role}_acr": details["acr"]}
    at = {float(key): share for key, share in details["certified_accuracy"].items() if float(key) > 0}
    return {
        "acr": details["acr"],
        "smoothed_acc": details["smoothed_accuracy"],
        **{f"cert_{radius:g}": at[radius] for radius in sorted(at)[:SHORT_RADII]},
    }


def compute_metrics(certificates: Certificates) -> dict[str, Any]:
    """The metrics of one classifier. Shares are of all images, abstentions and errors included.

    An image that stands in the test set several times counts once in what follows:
    `interval`: exact 95 % confidence intervals, for the finite test set (lists).
    `certified_accuracy_lower_bound`: what holds of these very images with probability 0.999, over the
    failures that alpha permits.
    """
    settings, images, once = certificates.settings, len(certificates), certificates.once
    distinct = int(once.sum())
    right_once = {
        str(radius): int(certificates.right_at(radius)[once].sum()) for radius in certificates.radii
    }
    right = {str(radius): int(certificates.right_at(radius).sum()) for radius in certificates.radii}
    smoothed = int(certificates.correct.sum())
    estimated = int((certificates.status != "misclassified").sum())
    abstained = int((certificates.status == "abstained").sum())
    metrics: dict[str, Any] = {
        "smoothed_accuracy": smoothed / images,
        "certified_accuracy": {key: count / images for key, count in right.items()},
        "acr": float(certificates.right_radius.mean()),
        "acr_is_lower_bound": settings["mode"] == "adaptive",
        "median_radius": float(np.median(certificates.right_radius)),
        "abstention_rate": abstained / max(estimated, 1),
        "images": images,
        "repeated_images": images - distinct,
        "subset": subset_rule(settings["stride"], settings["max_images"]),
        "forward_passes": settings["forward_passes"],
        "certified_accuracy_lower_bound": {
            key: failures_subtracted(count, distinct, settings["alpha"]) for key, count in right_once.items()
        },
        "interval": {
            "smoothed_accuracy": exact_interval(int(certificates.correct[once].sum()), distinct),
            "certified_accuracy": {key: exact_interval(count, distinct) for key, count in right_once.items()},
        },
    }
    if settings.get("warnings"):
        metrics["warnings"] = "; ".join(settings["warnings"])
    return metrics


def subset_rule(stride: int, max_images: int | None) -> str:
    """Which test images were certified, in words: numbers of different subsets must not be compared."""
    rule = "every test image" if stride == 1 else f"every {stride}th test image from the first"
    return rule if max_images is None else f"{rule}, at most {max_images}, chosen by their hashes"


def curve_of(certificates: Certificates) -> NDArray[np.float64]:
    """Certified accuracy over radii [CURVE_STEPS + 1, 2], from 0 to the largest that n draws can certify."""
    radii = _radius_grid(certificates)
    return np.column_stack([radii, [certificates.right_at(radius).mean() for radius in radii]])


def ecdf_of(certificates: Certificates) -> NDArray[np.float64]:
    """Share of images whose lower bound of p_A is at most p [CURVE_STEPS + 2, 2], from p = 0; it ends at 1.

    Images without a right certificate count as 0: nothing is certified about the probability of their class.
    """
    p_lower = np.sort(np.where(certificates.correct, certificates.p_lower, 0.0))
    grid = np.concatenate([[0.0], ndtr(_radius_grid(certificates) / certificates.settings["sigma"])])
    grid[-1] = max(grid[-1], p_lower[-1])
    return np.column_stack([grid, np.searchsorted(p_lower, grid, side="right") / len(p_lower)])


def _radius_grid(certificates: Certificates) -> NDArray[np.float64]:
    """Evenly spaced radii up to the largest possible one."""
    grid = np.linspace(0.0, certificates.largest_radius, CURVE_STEPS + 1)
    grid[-1] = max(grid[-1], certificates.radius.max())  # they may differ in the last digit
    return grid
