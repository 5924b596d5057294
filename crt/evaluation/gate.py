"""The gate: is the student no worse than the baseline, beyond the margins that the user accepts?"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from crt.evaluation.certificates import Certificates
from crt.evaluation.paired import (
    Discordance,
    check_comparable,
    discordance,
    mcnemar,
    mean_interval,
    score_interval,
)

Verdict = Literal["pass", "fail", "undecided"]
_MOST_IMAGES = 10**9  # no test set is larger


@dataclass(frozen=True)
class Margins:
    """Largest acceptable losses."""

    accuracy: float  # of certified accuracy at a radius
    accuracy_at: Mapping[str, float]  # the same for single radii, keyed by the radius
    acr: float  # of ACR, [0,1] pixel units

    def at(self, radius: float) -> float:
        """The margin of certified accuracy at `radius`."""
        return self.accuracy_at.get(str(radius), self.accuracy)


def judge(interval: tuple[float, float], margin: float) -> Verdict:
    """Non-inferiority: the confidence interval of student minus baseline against the largest acceptable loss."""
    low, high = interval
    if low >= -margin:
        return "pass"
    return "fail" if high < -margin else "undecided"


def decide(
    student: Certificates,
    baseline: Certificates | None,
    teacher: Certificates,
    margins: Margins,
    confidence: float,
) -> dict[str, Any]:
    """The verdict and what it rests on.

    The verdict is pass when every comparison with the baseline passes, fail when one fails, else undecided. `comparisons` has
    one row per quantity and classifier compared with; the rest sums it up.

    Raises:
        UserError: the certificates are not of the same images or settings.
    """
    with_teacher = compare(student, teacher, "teacher", confidence)
    own_acr, teacher_acr = with_teacher[0]["student"], with_teacher[0]["other"]
    share = own_acr / teacher_acr if teacher_acr > 0 else None
    with_baseline = (
        compare(student, baseline, "baseline", confidence, margins) if baseline is not None else []
    )
    verdict, needed = _overall(with_baseline)
    result = {
        "verdict": verdict,
        "sentences": [_verdict_sentence(verdict, with_baseline, needed), _teacher_sentence(share)],
        "images": len(student),
        "images_to_decide": needed,
        "confidence": confidence,
        "vs_teacher": _differences(with_teacher) | {"acr_share": share},
    }
    if with_baseline:
        result["vs_baseline"] = _differences(with_baseline)
    return result | {"comparisons": with_baseline + with_teacher}


def compare(
    student: Certificates,
    other: Certificates,
    role: str,
    confidence: float,
    margins: Margins | None = None,
) -> list[dict[str, Any]]:
    """One row for ACR, then one per radius for certified accuracy; with verdicts where margins are given.

    Radii that n draws cannot reach are left out: nobody has a certificate there.

    Raises:
        UserError: the certificates are not of the same images or settings.
    """
    check_comparable(student, other)
    rows = [_acr_row(student, other, confidence, margins)]
    reached = [radius for radius in student.radii if radius <= student.largest_radius]
    rows += [_accuracy_row(student, other, radius, confidence, margins) for radius in reached]
    return [{"against": role} | row for row in rows]


def _acr_row(
    student: Certificates, other: Certificates, confidence: float, margins: Margins | None
) -> dict[str, Any]:
    differences = student.right_radius - other.right_radius
    difference, interval = float(differences.mean()), mean_interval(differences, confidence)
    row: dict[str, Any] = {
        "quantity": "acr",
        "student": float(student.right_radius.mean()),
        "other": float(other.right_radius.mean()),
        "difference": difference,
        "interval": interval,
    }
    if margins is not None:
        verdict, margin = judge(interval, margins.acr), margins.acr
        needed = (
            _images_for_mean(difference, interval, margin, len(student)) if verdict == "undecided" else None
        )
        row |= {"margin": margin, "verdict": verdict, "images_to_decide": needed}
    return row


def _accuracy_row(
    student: Certificates, other: Certificates, radius: float, confidence: float, margins: Margins | None
) -> dict[str, Any]:
    counts = discordance(student, other, radius)
    interval = score_interval(counts, confidence)
    row: dict[str, Any] = {
        "quantity": "certified_accuracy",
        "radius": radius,
        "student": float(student.right_at(radius).mean()),
        "other": float(other.right_at(radius).mean()),
        "difference": counts.difference,
        "interval": interval,
        "gained": counts.gained,
        "lost": counts.lost,
        "mcnemar_p": mcnemar(counts),
    }
    if margins is not None:
        verdict, margin = judge(interval, margins.at(radius)), margins.at(radius)
        needed = images_to_decide(counts, margin, confidence) if verdict == "undecided" else None
        row |= {"margin": margin, "verdict": verdict, "images_to_decide": needed}
    return row


def images_to_decide(counts: Discordance, margin: float, confidence: float) -> int | None:
    """How many images would decide the verdict if they split into gained, lost and equal as observed.

    None: no test set would, because the observed difference is the margin itself, or nearly.
    """

    def decided(images: int) -> bool:
        scale = images / counts.images
        scaled = Discordance(images, counts.gained * scale, counts.lost * scale)
        return judge(score_interval(scaled, confidence), margin) != "undecided"

    # The interval shrinks towards the difference, so that `decided` changes once.
    if not decided(_MOST_IMAGES):
        return None
    return bisect_left(range(_MOST_IMAGES), True, lo=1, key=decided)


def _images_for_mean(
    difference: float, interval: tuple[float, float], margin: float, images: int
) -> int | None:
    """The same for a mean, whose interval shrinks with the square root of the number of images."""
    distance = difference + margin
    reach = difference - interval[0] if distance > 0 else interval[1] - difference
    if abs(distance) * _MOST_IMAGES**0.5 <= reach * images**0.5:
        return None
    return max(images + 1, ceil(images * (reach / distance) ** 2))


def _overall(rows: list[dict[str, Any]]) -> tuple[str, int | None]:
    """The verdict over all comparisons with the baseline; if undecided, the number of images that would decide it."""
    verdicts = [row["verdict"] for row in rows]
    if "undecided" in verdicts and "fail" not in verdicts:
        needed = [row["images_to_decide"] for row in rows if row["verdict"] == "undecided"]
        return "undecided", None if None in needed else max(needed)
    return "no baseline" if not rows else "fail" if "fail" in verdicts else "pass", None


def _differences(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "acr": rows[0]["difference"],
        "certified_accuracy": {str(row["radius"]): row["difference"] for row in rows[1:]},
    }


def _verdict_sentence(verdict: str, rows: list[dict[str, Any]], needed: int | None) -> str:
    """The verdict in words."""
    if verdict == "no baseline":
        return "No baseline is pinned, so there is no release to compare the student with."
    if verdict == "pass":
        return "The student is no worse than the baseline beyond the margins, in ACR and at every radius."
    concerned = _in_words([row for row in rows if row["verdict"] == verdict])
    if verdict == "fail":
        return f"The student is worse than the baseline by more than the margin in {concerned}."
    remedy = (
        f"about {needed:,} test images would decide it" if needed else "no larger test set would decide it"
    )
    return (
        f"These images cannot tell whether the student loses more than the margin in {concerned}: {remedy}."
    )


def _teacher_sentence(share: float | None) -> str:
    """How much of its teacher's robustness the student has, in words."""
    if share is None:
        return "The teacher has no right certificate on these images, so there was no robustness to transfer."
    return f"The student reaches {100 * share:.1f} % of its teacher's average certified radius (ACR)."


def _in_words(rows: list[dict[str, Any]]) -> str:
    """`ACR and certified accuracy at 0.0, 0.25`."""
    radii = ", ".join(str(row["radius"]) for row in rows if row["quantity"] == "certified_accuracy")
    quantities = ["ACR"] * any(row["quantity"] == "acr" for row in rows) + [
        f"certified accuracy at {radii}"
    ] * bool(radii)
    return " and ".join(quantities)
