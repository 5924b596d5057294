"""What certification says of one image."""

from dataclasses import dataclass
from typing import Literal

ABSTAIN = -1


@dataclass(frozen=True)
class Certificate:
    """With probability >= 1 - alpha, g is `predict` within `radius` of the image (l2, [0,1] pixel units).

    `status` "abstained": predict is ABSTAIN, the radius 0, and nothing is claimed. "misclassified": the selected class is not
    the label, so nothing was estimated and nothing is claimed.
    """

    predict: int
    radius: float | None
    n_a: int  # votes for the selected class among n
    n: int  # estimation draws
    p_lower: float | None  # lower confidence bound of the selected class' probability
    status: Literal["certified", "abstained", "misclassified"]


@dataclass(frozen=True)
class Row:
    """A decided image of a test set: its place there, its certificate, the seconds it took."""

    idx: int
    certificate: Certificate
    seconds: float

    def correct(self, label: int) -> bool:
        """Whether the image is certified to have its label."""
        return self.certificate.status == "certified" and self.certificate.predict == label
