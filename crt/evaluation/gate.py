"""The gate: is the student no worse than the baseline, beyond the margins that the user accepts?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crt.evaluation.anchor import Anchor
from crt.evaluation.betting import Floats, decidable_margins, mean_interval
from crt.evaluation.certificates import Certificates
from crt.evaluation.classes import compare_classes
from crt.evaluation.paired import Pair, mcnemar, pair
from crt.evaluation.verdict import Verdict, judge, sentences

Row = dict[str, Any]
Values = NDArray[np.float64] | NDArray[np.bool_]
Quantity = Literal["acr", "certified_accuracy", "certificates_kept"]


@dataclass(frozen=True)
class Margins:
    """Largest acceptable losses."""

    accuracy: float  # of certified accuracy at a radius
    accuracy_at: Mapping[str, float]  # the same for single radii, keyed by the radius
    acr: float  # of ACR, [0,1] pixel units
    lost: float | None = None  # share of the other's certificates at a radius that may be lost; None: any
    # Of certified accuracy in one class, with a warning; None: classes are not compared.
    classes: float | None = None
    anchor_factor: float = 1.0  # the margins against the anchor, as a multiple of these

    def at(self, radius: float) -> float:
        """The margin of certified accuracy at `radius`."""
        return self.accuracy_at.get(str(radius), self.accuracy)

    @property
    def against_anchor(self) -> "Margins":
        """Those of accuracy and ACR against the anchor; there are no others."""
        wider = {radius: self.anchor_factor * margin for radius, margin in self.accuracy_at.items()}
        return Margins(self.anchor_factor * self.accuracy, wider, self.anchor_factor * self.acr)


def decide(
    student: Certificates,
    baseline: Certificates | None,
    teacher: Certificates,
    margins: Margins,
    confidence: float,
    classes: Sequence[str] = (),
    anchor: Anchor | None = None,
) -> dict[str, Any]:
    """The verdict and what it rests on.

    `comparisons` has one row per quantity and classifier compared with; the rest sums it up.

    Args:
        student: The candidate's certificates.
        baseline: Those of the release in use; None: nothing is decided.
        teacher: The teacher's, which never decide.
        margins: The largest acceptable losses against the baseline and the anchor.
        confidence: Of the two-sided intervals.
        classes: The classes' names, in the order of the labels; used where classes are compared.
        anchor: The release that a chain of releases is held to; None: there is none.

    Raises:
        UserError: the certificates are not of the same images or settings.
    """
    with_teacher = compare(pair(student, teacher), "teacher", confidence)
    own_acr, teacher_acr = with_teacher[0]["student"], with_teacher[0]["other"]
    share = own_acr / teacher_acr if teacher_acr > 0 else None
    both = pair(student, baseline) if baseline is not None else None
    rows = compare(both, "baseline", confidence, margins) if both is not None else []
    by_class = (
        compare_classes(both, both.middle_radius, margins.classes, confidence, classes)
        if both is not None and margins.classes is not None
        else None
    )
    held = (
        compare(anchor.both, "anchor", confidence, margins.against_anchor)
        if anchor is not None and anchor.both is not None
        else []
    )
    verdict = overall([*rows, *held])
    result = {
        "verdict": verdict,
        "sentences": sentences(verdict, rows, held, anchor, by_class, share),
        "images": int(student.once.sum()),
        "confidence": confidence,
        "vs_teacher": _differences(with_teacher) | {"acr_share": share},
    }
    if rows:
        result["vs_baseline"] = _differences(rows)
    if anchor is not None:
        result |= _since(anchor, held or ([] if anchor.begins else rows))
    return result | {"classes": by_class, "comparisons": rows + held + with_teacher}


def _since(anchor: Anchor, rows: Sequence[Row]) -> Row:
    """What is told of the anchor; `rows` compare the student with it."""
    facts = {
        "version": anchor.version,
        "reason": anchor.reason,
        "images": None if anchor.both is None else len(anchor.both),
        "begins": anchor.begins,
    }
    return {"anchor": facts} | ({"vs_anchor": _differences(rows)} if rows else {})


def overall(rows: Sequence[Row]) -> Verdict | Literal["no baseline"]:
    """The verdict over all comparisons: pass when every one passes, fail when one fails, else undecided."""
    verdicts = {row["verdict"] for row in rows}
    if not verdicts:
        return "no baseline"
    return "fail" if "fail" in verdicts else "undecided" if "undecided" in verdicts else "pass"


def compare(both: Pair, role: str, confidence: float, margins: Margins | None = None) -> list[Row]:
    """One row for ACR, then one per radius for certified accuracy; with verdicts where margins are given.

    Where the margins bound the share of lost certificates, one more row per radius at which the other has
    certificates.

    Args:
        both: The student's certificates and the other's (`crt.evaluation.paired.pair`).
        role: Whom the student is compared with.
        confidence: Of the two-sided intervals.
        margins: The largest acceptable losses; None: nothing is judged.
    """
    rows = [_acr_row(both, confidence, margins)]
    rows += [_accuracy_row(both, radius, confidence, margins) for radius in both.radii]
    if margins is not None and margins.lost is not None:
        certified = [radius for radius in both.radii if both.second.right_at(radius).any()]
        rows += [_kept_row(both, radius, confidence, margins.lost) for radius in certified]
    return [{"against": role} | row for row in rows]


def _acr_row(both: Pair, confidence: float, margins: Margins | None) -> Row:
    """The interval is of shares of the largest radius that there can be, which no difference exceeds."""
    mine, other, reach = both.first.right_radius, both.second.right_radius, both.reach
    margin = None if margins is None else margins.acr
    values: Floats = np.clip((mine - other) / reach, -1.0, 1.0)
    return {"quantity": "acr"} | _row(mine, other, values, reach, margin, confidence)


def _accuracy_row(both: Pair, radius: float, confidence: float, margins: Margins | None) -> Row:
    mine, other = both.right_at(radius)
    gained, lost = int((mine & ~other).sum()), int((other & ~mine).sum())
    margin = None if margins is None else margins.at(radius)
    return (
        {"quantity": "certified_accuracy", "radius": radius}
        | _row(mine, other, np.subtract(mine, other, dtype=np.float64), 1.0, margin, confidence)
        | {"gained": gained, "lost": lost, "mcnemar_p": mcnemar(gained, lost)}
    )


def _row(
    mine: Values, other: Values, values: Floats, unit: float, margin: float | None, confidence: float
) -> Row:
    """A comparison of two means; `values` [N] are the differences in `unit`s."""
    low, high = mean_interval(values, confidence)
    row: Row = {
        "student": float(mine.mean()),
        "other": float(other.mean()),
        "difference": float(values.mean()) * unit,
        "interval": (low * unit, high * unit),
    }
    if margin is None:
        return row
    decidable = {chance: least * unit for chance, least in decidable_margins(values, confidence).items()}
    return row | {"margin": margin, "verdict": judge(row["interval"], margin), "decidable": decidable}


def _kept_row(both: Pair, radius: float, confidence: float, most_lost: float) -> Row:
    """Which share of the other's certificates the student has too: an exact binomial test."""
    mine, other = both.right_at(radius)
    kept = mine[other]
    low, high = mean_interval(np.subtract(kept, 1, dtype=np.float64), confidence, least=-1.0, most=0.0)
    return {
        "quantity": "certificates_kept",
        "radius": radius,
        "student": float(kept.mean()),
        "other": 1.0,
        "difference": float(kept.mean()) - 1.0,
        "interval": (low, high),
        "margin": most_lost,
        "verdict": judge((low, high), most_lost),
        "decidable": None,  # how many certificates an equal student loses is a matter of the recipe
        "lost": int((~kept).sum()),
    }


def _differences(rows: Sequence[Row]) -> Row:
    return {
        "acr": rows[0]["difference"],
        "certified_accuracy": {
            str(row["radius"]): row["difference"] for row in rows if row["quantity"] == "certified_accuracy"
        },
    }
