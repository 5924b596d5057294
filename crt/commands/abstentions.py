"""Do the images that are asked about abstain as often as the test set's? If not, the data have changed."""

import json
from collections.abc import Mapping
from math import ceil, floor
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import betabinom, binom, fisher_exact

from crt.errors import UserError
from crt.evaluation.certificates import Certificates, read_certificates
from crt.files import write_text
from crt.models.checkpoint import model_fingerprint

LAST = 1000  # different images that are remembered
LEVEL = 1e-4  # chance of a false warning per call and direction


def warning(model: Path, asked: Mapping[str, bool], n: int, alpha: float) -> str | None:
    """Remember what was asked about a project's model; say if its images abstain too often or too seldom.

    The project is the one whose models/ the folder lies in, and which has certified the model; for another
    folder nothing is remembered. What is remembered lies in its .work/requests.

    Args:
        model: The model's folder.
        asked: Whether each image abstained, by its `pixel_hash`, in the order asked.
        n: The draws per image.
        alpha: The level.

    Returns:
        The sentence; None: no reason, or nothing to compare with.
    """
    model = model.resolve()
    root = model.parent.parent
    try:
        tested = read_certificates(root / "certificates" / f"{model.name}.tsv")
    except UserError:
        return None
    fingerprint = model_fingerprint(model)
    if tested.settings.get("model_fingerprint") != fingerprint:
        return None
    place = root / ".work" / "requests" / f"{fingerprint[:16]}-{n}-{alpha:g}.json"
    known: dict[str, bool] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    kept = {image: known[image] for image in known if image not in asked} | dict(asked)
    kept = dict(list(kept.items())[-LAST:])
    write_text(place, json.dumps(kept))
    return judged(sum(kept.values()), len(kept), *expected(tested, n, alpha))


def judged(abstained: int, images: int, fewest: float, most: float, tested: int) -> str | None:
    """A sentence if `abstained` of `images` differ beyond chance from the test set, by Fisher's exact test.

    Args:
        abstained: How many abstained.
        images: Of how many.
        fewest: How many of the test set's images abstain at least.
        most: At most.
        tested: The test set's images.
    """

    def chance(others: int, direction: Literal["greater", "less"]) -> float:
        table = np.array([[abstained, images - abstained], [others, tested - others]])
        return float(fisher_exact(table, alternative=direction).pvalue)

    more, fewer = chance(ceil(most), "greater"), chance(floor(fewest), "less")
    if min(more, fewer) >= LEVEL:
        return None
    return (
        f"warning: {abstained / images:.1%} of the last {images:,} different images abstained, and "
        f"{fewest / tested:.1%} to {most / tested:.1%} of the test set do (p = {min(more, fewer):.0e}). "
        "These images are not like the test set's: look at them, and retrain with such images "
        "(docs/retraining.md)"
    )


def expected(tested: Certificates, n: int, alpha: float) -> tuple[float, float, int]:
    """How many of the test set's different images abstain with `n` draws: at least, at most, of how many.

    The test set may have been certified with another number of draws: an image with k of m votes abstains
    with the chance that such an image gets too few of n (beta-binomial law). Where the selected class was
    wrong, nothing may have been drawn, and the image may abstain or not.
    """
    # So many votes, or more, have probability alpha at most if no class leads.
    needed = int(binom.isf(alpha, n, 0.5)) + 1
    once = tested.once
    votes, draws = tested.n_a[once], tested.n[once]
    drawn = draws > 0
    chances = betabinom.cdf(needed - 1, n, votes[drawn] + 1, draws[drawn] - votes[drawn] + 1)
    least = float(np.sum(chances))
    return least, least + int((~drawn).sum()), len(once.nonzero()[0])
