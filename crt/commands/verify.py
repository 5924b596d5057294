"""`crt verify`: check the certificates of a release that somebody else made."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from crt.report import formats
from crt.verification.checks import Refuted, Same, ask, passes_per_second, repeat
from crt.verification.images import find_images
from crt.verification.sample import REFUTED, Plan, largest_unseen, make_plan, smallest_share, summary
from crt.verification.untrusted import Release, open_release, plain


@dataclass(frozen=True)
class Verification:
    """What was checked and found. Rows are places in the table.

    Attributes:
        rows: Rows of the table.
        absent: Rows of the sample whose images are not at hand.
        mislabeled: Rows whose image has another label.
        repeated: What came of certifying rows again on the same noise.
        asked: Claims that were checked on fresh noise.
        draws: Fresh draws for each of them.
        refuted: Those that do not hold.
        share: The smallest share of changed rows that would have been found with 95 % chance.
        false_share: The smallest share of claims that are too large by `unseen`, likewise.
        unseen: See `largest_unseen`.
    """

    rows: int
    absent: int
    mislabeled: list[int]
    repeated: dict[int, Same]
    asked: int
    draws: int
    refuted: list[Refuted]
    share: float
    false_share: float
    unseen: float

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the certificates.

        A row whose image is not at hand does: it may be of an image that does not exist.
        """
        return not (self.absent or self.refuted or self.mislabeled or "different" in self.repeated.values())


def verify(
    folder: Path, role: str, images: Path | None, minutes: float, device: str, *, json_output: bool
) -> bool:
    """Check a release, print what was found; whether nothing speaks against it.

    Raises:
        UserError: The release is refused, or its images are not at hand.
    """
    release = open_release(folder, role)
    smoothed = release.smoothed(device)
    table = release.certificates
    # Drawn now, by this machine: nobody could know the rows when the release was made.
    order = random.SystemRandom().sample(range(len(table)), len(table))
    place = images or folder / "prepared" / "test"
    speed = passes_per_second(smoothed, release.info.spec)
    plan = make_plan(table, order, 60 * minutes * speed, release.settings["n0"])
    if not json_output:
        print(_announced(release, role, plan, speed, minutes), flush=True)
        if images is None:
            print("images and labels: the release's own; --images names a test set of yours")
    rows = sorted({*plan.repeated, *plan.asked})
    pixels, mislabeled = find_images(place, table, rows, release.info.spec)
    repeated = repeat(release, smoothed, pixels, plan)
    refuted = ask(release, smoothed, pixels, plan)
    asked = sum(row in pixels for row in plan.asked)
    claims = int((table.status == "certified").sum())
    found = Verification(
        rows=len(table),
        absent=len(rows) - len(pixels),
        mislabeled=mislabeled,
        repeated=repeated,
        asked=asked,
        draws=plan.draws,
        refuted=refuted,
        share=smallest_share(len(table), len(repeated)),
        false_share=smallest_share(claims, asked, 0.99) if claims else 1.01,
        unseen=largest_unseen(table, plan),
    )
    print(_json(found, release) if json_output else "\n".join(_text(found, release)))
    return found.holds


def _announced(release: Release, role: str, plan: Plan, speed: float, minutes: float) -> str:
    said, info = release.settings, release.info
    return (
        f"{role}: {plain(info.arch)}, {len(info.spec.classes)} classes, {info.spec.size} pixels, sigma "
        f"{said['sigma']:g}; {len(release.certificates):,} rows, {said['mode']}, n = {said['n']:,}, alpha = "
        f"{said['alpha']:g}, {said['precision']}; the signer is unknown\n"
        f"{minutes:g} minutes at {speed:,.0f} forward passes/s: {len(plan.repeated):,} rows again on the "
        f"same noise, {len(plan.asked):,} claims on {plan.draws:,} fresh draws each"
    )


def _text(found: Verification, release: Release) -> list[str]:
    """What was found, line by line."""
    table = release.certificates
    kinds = list(found.repeated.values())
    lines = []
    if found.absent:
        lines.append(
            f"not at hand: the images of {found.absent:,} rows of the sample; such rows may be "
            "made up, so name the folder of all test images with --images"
        )
    close = kinds.count("close")
    other = f", {close:,} nearly (this is another device or version of torch)" if close else ""
    lines.append(f"same noise: {kinds.count('same'):,} of {len(kinds):,} rows are the same{other}")
    lines += [
        f"  row of {plain(table.name[row])} is another"
        for row, kind in sorted(found.repeated.items())
        if kind == "different"
    ][:10]
    lines.append(
        f"fresh noise: {len(found.refuted):,} of {found.asked:,} claims are refuted (a claim that holds: "
        f"with probability {REFUTED:g})"
    )
    lines += [
        f"  {plain(table.name[bad.row])}: {bad.votes:,} of {bad.draws:,} votes, where p >= "
        f"{table.p_lower[bad.row]:.4f} is claimed"
        for bad in found.refuted[:10]
    ]
    if found.mislabeled:
        named = ", ".join(plain(table.name[row]) for row in found.mislabeled[:10])
        lines.append(f"labels: {len(found.mislabeled):,} images have another label: {named}")
    false = f"certified radii are too large by {formats.radius_up(found.unseen)} or more, or of a wrong class"
    lines += [
        _power(
            f"rows were changed{' in more than 1 % of their votes' if close else ''}", found.share, found.rows
        ),
        _power(false, found.false_share, found.asked),
    ]
    said = summary(table)
    accuracy = ", ".join(f"{formats.percent(v)} at {r}" for r, v in said["certified_accuracy"].items())
    lines.append(f"the table says: certified accuracy {accuracy}; ACR {formats.radius(said['acr'])}")
    lines.append("verified" if found.holds else "NOT VERIFIED")
    return lines


def _power(what: str, share: float, rows: int) -> str:
    if share > 1:
        return (
            f"too few rows were checked to find a release whose {what}"
            if rows
            else f"not checked: whether {what}"
        )
    percent = f"{formats.points_up(share)} %"
    return f"found with 95 % chance: a release in which {percent} or more of the {what}"


def _json(found: Verification, release: Release) -> str:
    kinds = list(found.repeated.values())
    facts = asdict(found) | {
        "repeated": {kind: kinds.count(kind) for kind in ("same", "close", "different")},
        "different": [row for row, kind in sorted(found.repeated.items()) if kind == "different"],
        "refuted": [asdict(bad) for bad in found.refuted],
        "table": summary(release.certificates),
        "verified": found.holds,
    }
    return json.dumps(facts)
