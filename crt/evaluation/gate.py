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
    """The content of results/gate.json.

    `comparisons` (a list, which DVC's tables leave out) has one row per quantity and classifier compared with; the rest sums
    it up. The verdict is pass when every comparison with the baseline passes, fail when one fails, else undecided.

    Raises:
        UserError: the certificates are not of the same images or settings.
    """
    against_teacher = compare(student, teacher, "teacher", confidence)
    teacher_acr = against_teacher[0]["other"]
    summary = {
        "images": len(student),
        "confidence": confidence,
        "vs_teacher": _differences(against_teacher)
        | {"acr_share": against_teacher[0]["student"] / teacher_acr if teacher_acr > 0 else None},
    }
    if baseline is None:
        sentence = "No baseline is pinned, so there is nothing to compare the student with."
        return {"verdict": "no baseline", "sentence": sentence} | summary | {"comparisons": against_teacher}

    against_baseline = compare(student, baseline, "baseline", confidence, margins)
    verdicts = [row["verdict"] for row in against_baseline]
    verdict: Verdict = "fail" if "fail" in verdicts else "undecided" if "undecided" in verdicts else "pass"
    needed = [row["images_to_decide"] for row in against_baseline if row["verdict"] == "undecided"]
    images_to_decide = None if None in needed or verdict != "undecided" else max(needed)
    return (
        {
            "verdict": verdict,
            "sentence": _sentence(verdict, against_baseline, images_to_decide),
            "images_to_decide": images_to_decide,
        }
        | summary
        | {"vs_baseline": _differences(against_baseline), "comparisons": against_baseline + against_teacher}
    )


def compare(
    student: Certificates,
    other: Certificates,
    role: str,
    confidence: float,
    margins: Margins | None = None,
) -> list[dict[str, Any]]:
    """One row for ACR, then one per radius for certified accuracy; with verdicts where margins are given.

    Raises:
        UserError: the certificates are not of the same images or settings.
    """
    check_comparable(student, other)
    rows = [_acr_row(student, other, confidence, margins)]
    rows += [_accuracy_row(student, other, radius, confidence, margins) for radius in student.radii]
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


def _differences(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "acr": rows[0]["difference"],
        "certified_accuracy": {str(row["radius"]): row["difference"] for row in rows[1:]},
    }


def _sentence(verdict: Verdict, rows: list[dict[str, Any]], needed: int | None) -> str:
    """The verdict in words."""
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


def _in_words(rows: list[dict[str, Any]]) -> str:
    """`ACR and certified accuracy at 0.0, 0.25`."""
    radii = ", ".join(str(row["radius"]) for row in rows if row["quantity"] == "certified_accuracy")
    quantities = ["ACR"] * any(row["quantity"] == "acr" for row in rows) + [
        f"certified accuracy at {radii}"
    ] * bool(radii)
    return " and ".join(quantities)
