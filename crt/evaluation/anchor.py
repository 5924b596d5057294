"""The anchor: a release that all later ones are held to, so that small losses do not add up.

A student that loses less than the margin may pass, and the next one may lose as much again against it. Drug
trials know this as biocreep. So the student is compared with an earlier release too, by the certificates that
were made when that was released.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from crt.evaluation.certificates import Certificates
from crt.evaluation.paired import SAME_SETTINGS, Pair, pair

LEAST = 2  # images in common, so that there is something to compare
_NAMES = {"image_size": "the image size", "channels": "the number of channels", "sigma": "sigma"}


@dataclass(frozen=True)
class Anchor:
    """The anchor, and what the student has in common with it.

    Attributes:
        version: What it is called, such as v1.0.0.
        reason: Why it is the anchor; None: it is the first release of its chain.
        both: The student's certificates and its own, on the images that both have; None: it is the baseline
            too, so that the comparison with that is enough, or nothing can be compared.
        begins: Why nothing can be compared, in words; None: it can. Then a new chain begins with the student.
    """

    version: str
    reason: str | None
    both: Pair | None = None
    begins: str | None = None

    @property
    def name(self) -> str:
        """Version and reason, in words."""
        return f"{self.version} ({self.reason or 'the first of its chain'})"


def apart(mine: Mapping[str, Any], other: Mapping[str, Any], version: str) -> str | None:
    """Why no image can be judged by both of two models, in words; None: it can.

    Args:
        mine: The student's model.json.
        other: That of a release.
        version: The release's.
    """
    if mine.get("classes") != other.get("classes"):
        return f"the classes are not those of {version}"
    for key, name in _NAMES.items():
        if mine.get(key) != other.get(key):
            return f"{name} is {mine.get(key)}, and {other.get(key)} in {version}"
    return None


def compared(
    version: str,
    reason: str | None,
    student: Certificates,
    model: Mapping[str, Any],
    certificates: Certificates,
    other_model: Mapping[str, Any],
) -> Anchor:
    """An anchor beside the student.

    Args:
        version: What it is called.
        reason: Why it is the anchor; None: it is the first release of its chain.
        student: The student's certificates.
        model: The student's model.json.
        certificates: Those of the anchor, of the test set that there was.
        other_model: The anchor's model.json.
    """
    begins = apart(model, other_model, version)
    # In exact mode radii are reported, and decide nothing else.
    if student.settings["mode"] == certificates.settings["mode"] == "exact":
        same = certificates.settings | {"radii": student.settings["radii"]}
        certificates = replace(certificates, settings=same)
    begins = begins or _apart_in_settings(student, certificates, version)
    if begins is None:
        return Anchor(version, reason, both=pair(student, certificates, common=True))
    return Anchor(version, reason, begins=begins)


def _apart_in_settings(student: Certificates, other: Certificates, version: str) -> str | None:
    if student.noise != other.noise:
        return f"the certificates of {version} are of another kind of noise"
    for key in SAME_SETTINGS:
        if student.settings[key] != other.settings[key]:
            mine, theirs = student.settings[key], other.settings[key]
            return f"{key} of the certification is {mine}, and {theirs} in {version}"
    if len(set(student.image) & set(other.image)) < LEAST:
        return f"the test images of {version} are no longer in the test set"
    return None
