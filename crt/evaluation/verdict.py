"""Verdicts, and what they say in words."""

from collections.abc import Sequence
from math import ceil
from typing import Any, Literal

from crt.errors import first_ten
from crt.evaluation.anchor import Anchor

Verdict = Literal["pass", "fail", "undecided"]
NAMES = {
    "certified_accuracy": "certified accuracy",
    "certificates_kept": "certificates of the baseline that it keeps",
}


def judge(interval: tuple[float, float], margin: float) -> Verdict:
    """Non-inferiority: the interval of student minus baseline against the largest acceptable loss."""
    low, high = interval
    if low >= -margin:
        return "pass"
    return "fail" if high < -margin else "undecided"


def sentences(
    verdict: str,
    rows: Sequence[dict[str, Any]],
    held: Sequence[dict[str, Any]],
    anchor: Anchor | None,
    by_class: dict[str, Any] | None,
    acr_share: float | None,
) -> list[str]:
    """What was decided, in words; the verdict first.

    Args:
        verdict: Over all rows.
        rows: The comparisons with the baseline.
        held: Those with the anchor.
        anchor: The anchor; None: there is none.
        by_class: The comparison of classes; None: there is none.
        acr_share: The student's ACR as a share of the teacher's; None: the teacher's is 0.
    """
    said = [_verdict_sentence(verdict, rows, held)]
    if anchor is not None:
        said.append(_anchor_sentence(anchor, held))
    if rows:
        said.append(_decidable_sentence(rows))
    if by_class is not None:
        said += _class_sentences(by_class)
    if acr_share is None:
        said.append(
            "The teacher has no right certificate on these images, so there was no robustness to transfer."
        )
    else:
        said.append(
            f"The student reaches {100 * acr_share:.1f} % of its teacher's average certified radius (ACR)."
        )
    return said


def _verdict_sentence(verdict: str, rows: Sequence[dict[str, Any]], held: Sequence[dict[str, Any]]) -> str:
    if verdict == "no baseline":
        return "No baseline is pinned, so there is no release to compare the student with."
    if verdict == "pass":
        others = "the baseline and the anchor" if held else "the baseline"
        return f"The student is no worse than {others} beyond the margins, in ACR and at every radius."
    concerned = " and ".join(
        f"than the {role} in {_in_words(some)}"
        if verdict == "fail"
        else f"against the {role} in {_in_words(some)}"
        for role, compared in (("baseline", rows), ("anchor", held))
        if (some := [row for row in compared if row["verdict"] == verdict])
    )
    if verdict == "fail":
        return f"The student is worse by more than the margin {concerned}."
    return (
        f"These images cannot tell whether the student loses more than the margin {concerned}: "
        "add test images, or accept wider margins."
    )


def _anchor_sentence(anchor: Anchor, held: Sequence[dict[str, Any]]) -> str:
    """What has changed since the anchor, or why that cannot be told."""
    if anchor.begins is not None:
        return (
            "The chain of releases begins again with this student, which cannot be compared with the anchor "
            f"{anchor.name}: {anchor.begins}."
        )
    if anchor.both is None:
        return f"The baseline is itself the anchor, {anchor.name}."
    acr = next(row["difference"] for row in held if row["quantity"] == "acr")
    points = ", ".join(
        f"{100 * row['difference']:+.1f} at {row['radius']}"
        for row in held
        if row["quantity"] == "certified_accuracy"
    )
    return (
        f"Since the anchor {anchor.name} ACR has changed by {acr:+.4f} and certified accuracy by {points} "
        f"points, on the {len(anchor.both):,} images that both were certified on."
    )


def _decidable_sentence(rows: Sequence[dict[str, Any]]) -> str:
    """The smallest margins that the test set can decide; at the radius that needs the widest."""
    told = {"acr": "ACR", "certified_accuracy": "certified accuracy"}
    parts = []
    for quantity, name in told.items():
        found = [row["decidable"] for row in rows if row["quantity"] == quantity]
        if found:
            often, nearly = (rounded_up(max(each[chance] for each in found)) for chance in ("0.8", "0.95"))
            parts.append(f"{often} in {name} with 80 % chance, {nearly} with 95 %")
    return f"The smallest margin that these images can decide for an equal student is {'; '.join(parts)}."


def rounded_up(margin: float) -> str:
    """A margin that is no smaller than the given one: `0.0312`."""
    return f"{ceil(margin * 1e4 - 1e-9) / 1e4:.4f}"


def _class_sentences(by_class: dict[str, Any]) -> list[str]:
    """The worst class, then the classes that lose too much, then those that cannot be decided."""
    rows, radius, margin = by_class["rows"], by_class["radius"], by_class["margin"]
    worst = min(rows, key=lambda row: row["student"])
    said = [
        f"The class that is certified worst at radius {radius} is {worst['class']}: "
        f"{100 * worst['student']:.1f} % (baseline: {100 * worst['other']:.1f} %)."
    ]
    failed, undecided = (
        [row["class"] for row in rows if row["verdict"] == verdict] for verdict in ("fail", "undecided")
    )
    if failed:
        said.append(
            f"Warning: at radius {radius} the student loses more than {margin:g} in the class "
            f"{first_ten(failed)}."
        )
    if undecided:
        needed = by_class["images_needed"]
        remedy = f"about {needed:,} test images of each would" if needed else "no test set would"
        said.append(
            f"Warning: these images cannot tell whether it loses more than {margin:g} in the class "
            f"{first_ten(undecided)}: {remedy} decide it for an equal student with 80 % chance."
        )
    return said


def _in_words(rows: Sequence[dict[str, Any]]) -> str:
    """`ACR and certified accuracy at 0.0, 0.25`."""
    parts = ["ACR"] * any(row["quantity"] == "acr" for row in rows)
    for quantity, name in NAMES.items():
        radii = [str(row["radius"]) for row in rows if row["quantity"] == quantity]
        if radii:
            parts.append(f"{name} at {', '.join(radii)}")
    return " and ".join(parts)
