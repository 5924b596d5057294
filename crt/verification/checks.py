"""Two checks of certificates: the same noise again, and fresh noise."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crt.certification import bounds
from crt.certification.certificate import ABSTAIN, Certificate
from crt.certification.procedures import Draws, Procedure, Stage
from crt.certification.smoothing import Pixels, SmoothedClassifier
from crt.certification.votes import run_procedures
from crt.spec import ImageSpec
from crt.verification.sample import Plan, refuting_votes
from crt.verification.untrusted import Release

ROUNDING = 1e-8  # relative, of the bound between versions of SciPy
CLOSE = 0.01  # share of the votes that other rounding, of another device or version of torch, may move

Same = Literal["same", "close", "different"]


@dataclass(frozen=True)
class Refuted:
    """A claim that fresh noise refutes: the class has fewer votes than its p_lower allows."""

    row: int
    votes: int
    draws: int


def passes_per_second(smoothed: SmoothedClassifier, spec: ImageSpec, seconds: float = 2.0) -> float:
    """Measured on noisy copies of a gray image, after a warm-up."""
    counter = smoothed.counter(spec.shape)
    pixels = np.full((spec.size, spec.size, spec.channels), 128, np.uint8)
    draws = 4 * counter.batch_size
    done, began = -draws, 0.0
    while done <= 0 or time.perf_counter() - began < seconds:
        if done == 0:
            began = time.perf_counter()
        list(run_procedures(counter, [(0, pixels, _votes(draws))], _fresh()))
        done += draws
    return done / (time.perf_counter() - began)


def repeat(
    release: Release, smoothed: SmoothedClassifier, images: Mapping[int, Pixels], plan: Plan
) -> dict[int, Same]:
    """Certify rows again on their own noise.

    Where the release says that it was certified on this kind of device and version of torch, every number
    must be the same. Elsewhere logits are rounded differently, and votes of nearly equal logits move: rows
    whose class is the same and whose votes differ by at most `CLOSE` are close.
    """
    table, said = release.certificates, release.settings
    shape = release.info.spec.shape
    counter, charge = smoothed.counter(shape), smoothed.charge(shape)
    is_here = release.made_on(counter.device)
    budget = _Budget(plan.most)

    def tasks() -> Iterator[tuple[int, Pixels, Procedure]]:
        for row in plan.repeated:
            if row in images and budget.draws >= 0:
                label = int(table.label[row]) if said["skip_misclassified"] else None
                yield row, images[row], _within(budget, smoothed._certify(label, charge))

    found: dict[int, Same] = {}
    for row, certificate, _ in run_procedures(counter, tasks(), json.dumps(release.context())):
        if certificate is None:
            found[row] = "different"
        elif _claims(certificate) == _row(release, row):
            found[row] = "same"
        else:
            is_close = not is_here and _is_close(release, row, certificate, charge)
            found[row] = "close" if is_close else "different"
    return found


def ask(
    release: Release, smoothed: SmoothedClassifier, images: Mapping[int, Pixels], plan: Plan
) -> list[Refuted]:
    """Check claims on fresh noise: the class of a row has probability `p_lower` or more."""
    table = release.certificates
    rows = [row for row in plan.asked if row in images]
    counter = smoothed.counter(release.info.spec.shape)
    charge = smoothed.charge(release.info.spec.shape)
    tasks = ((row, images[row], _votes(plan.draws)) for row in rows)
    refuted = []
    for row, votes, _ in run_procedures(counter, tasks, _fresh()):
        predicted = int(table.predict[row])
        count = votes[predicted] if predicted < len(votes) else 0
        if count <= refuting_votes(max(float(table.p_lower[row]) - charge, 0.0), plan.draws):
            refuted.append(Refuted(row, count, plan.draws))
    return sorted(refuted, key=lambda found: found.row)


def _votes(draws: int) -> Procedure:
    """The votes of so many draws."""
    return (yield Draws(Stage.ESTIMATION, 0, draws))


@dataclass
class _Budget:
    """Draws that are left, for all rows together."""

    draws: float


def _within(budget: _Budget, procedure: Procedure) -> Procedure:
    """The same, but None where the draws are spent: the table says that the rows took far fewer."""
    draws = next(procedure)
    while True:
        budget.draws -= draws.stop - draws.start
        votes = yield draws
        try:
            draws = procedure.send(votes)
        except StopIteration as end:
            return end.value
        if budget.draws < draws.stop - draws.start:
            budget.draws = -1
            return None


def _fresh() -> str:
    """A context of noise that nobody knew before."""
    return f"verify {secrets.randbits(128):#x}"


def _claims(certificate: Certificate) -> tuple[object, ...]:
    c = certificate
    return (c.status, c.predict, c.radius or 0.0, c.n_a, c.n, c.p_lower or 0.0)


def _row(release: Release, row: int) -> tuple[str, int, float, int, int, float]:
    t = release.certificates
    votes = (int(t.n_a[row]), int(t.n[row]))
    return (str(t.status[row]), int(t.predict[row]), float(t.radius[row]), *votes, float(t.p_lower[row]))


def _is_close(release: Release, row: int, certificate: Certificate, charge: float) -> bool:
    status, predict, _, n_a, n, p_lower = _row(release, row)
    said = release.settings
    if status != "certified":
        return True  # it claims nothing
    # The bound must be that of the votes: else a row of nearly the same votes could claim any radius.
    if said["mode"] == "exact":
        bound = max(bounds.lower_bound(n_a, n, said["alpha"]) - charge, 0.0)
        follows = n == said["n"] and p_lower <= bound * (1 + ROUNDING)
    else:
        follows = 0 < n <= said["n"] and p_lower <= n_a / n + CLOSE
    if not follows:
        return False
    shares = [
        votes / draws if draws else 0.0 for votes, draws in ((n_a, n), (certificate.n_a, certificate.n))
    ]
    return certificate.predict in (predict, ABSTAIN) and abs(shares[0] - shares[1]) <= CLOSE
