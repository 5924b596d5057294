"""A certificates file -> metrics, the certified accuracy curve, the distribution of p_A."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from crt.evaluation.certificates import Certificates, is_pinned, read_certificates
from crt.evaluation.intervals import clopper_pearson, failures_subtracted
from crt.files import write_csv, write_json

CURVE_HEADER = ("radius", "certified_accuracy")
ECDF_HEADER = ("p_lower", "share")
CURVE_STEPS = 200


def write_metrics(tsv: Path, json_out: Path, curve_out: Path, ecdf_out: Path) -> None:
    """Write all that a certificates file says: metrics (JSON), curve and distribution of p_A (CSV).

    For the baseline when none is pinned: `{"pinned": false}` and headers alone.

    Raises:
        UserError: the certificates are missing or damaged.
    """
    if is_pinned(tsv):
        certificates = read_certificates(tsv)
        metrics, curve, ecdf = compute_metrics(certificates), curve_of(certificates), ecdf_of(certificates)
    else:
        metrics, curve, ecdf = {"pinned": False}, np.empty((0, 2)), np.empty((0, 2))
    write_csv(curve_out, CURVE_HEADER, curve)
    write_csv(ecdf_out, ECDF_HEADER, ecdf)
    write_json(json_out, metrics)


def compute_metrics(certificates: Certificates) -> dict[str, Any]:
    """The metrics of one classifier. Shares are of all images, abstentions and errors included.

    `interval`: exact 95 % confidence intervals, for the finite test set (lists, which DVC's tables leave out).
    `certified_accuracy_lower_bound`: what holds of these very images with probability 0.999, over the failures that alpha
    permits.
    """
    settings, images = certificates.settings, len(certificates)
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
        "seconds_per_image": settings["seconds"] / images,
        "images": images,
        "subset": subset_rule(settings["stride"], settings["max_images"]),
        "forward_passes": settings["forward_passes"],
        "certified_accuracy_lower_bound": {
            key: failures_subtracted(count, images, settings["alpha"]) for key, count in right.items()
        },
        "interval": {
            "smoothed_accuracy": clopper_pearson(smoothed, images),
            "certified_accuracy": {key: clopper_pearson(count, images) for key, count in right.items()},
        },
    }
    if settings.get("warnings"):
        metrics["warnings"] = "; ".join(settings["warnings"])
    return metrics


def subset_rule(stride: int, max_images: int | None) -> str:
    """Which test images were certified, in words: numbers of different subsets must not be compared."""
    rule = "every test image" if stride == 1 else f"every {stride}th test image from the first"
    return rule if max_images is None else f"{rule}, at most {max_images}"


def curve_of(certificates: Certificates) -> NDArray[np.float64]:
    """Certified accuracy over radii [CURVE_STEPS + 1, 2], from 0 to the largest radius that n draws can certify."""
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
