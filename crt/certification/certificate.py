"""What certification says of one image."""

from dataclasses import dataclass
from typing import Literal

ABSTAIN = -1


@dataclass(frozen=True)
class Certificate:
    """With probability >= 1 - alpha, the smoothed classifier says `predict` within `radius` of the image.

    Example:
        >>> certificate = Certificate(
        ...     predict=3, radius=0.41, n_a=990, n=1000, n0=100, p_lower=0.95, status="certified"
        ... )
        >>> certificate.correct(label=3), certificate.correct(label=5)
        (True, False)

    Attributes:
        predict: The class, or ABSTAIN.
        radius: l2, [0,1] pixel units; 0 for an abstention.
        n_a: Votes for the selected class among n.
        n: Draws that estimated its probability.
        n0: Draws that selected it.
        p_lower: Lower confidence bound of its probability.
        status: "abstained": nothing is claimed. "misclassified": the selected class is not the label, so
            nothing was estimated and nothing is claimed.
    """

    predict: int
    radius: float | None
    n_a: int
    n: int
    n0: int
    p_lower: float | None
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
