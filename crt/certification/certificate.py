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

    predict: int  # the class, or ABSTAIN
    radius: float | None
    n_a: int  # votes for the selected class among n
    n: int  # estimation draws
    n0: int  # selection draws
    p_lower: float | None  # lower confidence bound of the selected class' probability
    status: Literal["certified", "abstained", "misclassified"]

    def correct(self, label: int) -> bool:
        """Whether the image is certified to have its label."""
        return self.status == "certified" and self.predict == label


@dataclass(frozen=True)
class Row:
    """A decided image of a test set: its place there, its identity, its certificate, the seconds it took."""

    idx: int
    image: str  # hash of its pixels: equal images of a test set have the same certificate, on the same noise
    certificate: Certificate
    seconds: float
