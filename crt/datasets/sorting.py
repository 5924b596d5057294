"""Which images of a set are for training and which for the test, so that neither has the other's."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from crt.drops.copies import KnownImages
from crt.errors import UserError, first_ten

NearCopies = Literal["list", "drop", "refuse"]
TEST_SHARE = 5  # one image in five is for the test


@dataclass(frozen=True)
class ImageFacts:
    """An image: its name in its part, its label (-1: none), its pixel hash, and its look."""

    name: str
    label: int
    sha256: str
    look: bytes = b""


@dataclass
class Sorted:
    """What becomes training and test images.

    Attributes:
        drops: The training images of each drop.
        test: The test images.
        left_out: Training images whose pixels the test set has too, as `<drop>/<name>`.
        near: Training images that look like a test image, with its name.
    """

    drops: dict[str, list[ImageFacts]]
    test: list[ImageFacts]
    left_out: list[str] = field(default_factory=list)
    near: list[str] = field(default_factory=list)


def sort_out(
    drops: Mapping[str, Sequence[ImageFacts]],
    test: Sequence[ImageFacts] | None,
    classes: Sequence[str],
    near_copies: NearCopies,
) -> Sorted:
    """Keep apart what belongs to the test.

    Args:
        drops: The training images. Where there is no test set, the drop `base` is split.
        test: The test images; None: a fifth of each class becomes the test set.
        classes: The names of the classes.
        near_copies: What to do with training images that look like a test image.

    Raises:
        UserError: An image has two labels, or looks like a test image where that is refused.
    """
    _check_labels([entry for part in (*drops.values(), test or []) for entry in part], classes)
    kept = {drop: list(entries) for drop, entries in drops.items()}
    if test is None:
        kept["base"], test = split_off(kept["base"])
    known = KnownImages()
    for entry in test:
        known.add(entry.name, entry.sha256, entry.look)
    found = Sorted({}, list(test))
    for drop, entries in kept.items():
        found.drops[drop] = []
        for entry in entries:
            if entry.sha256 in known.by_hash:
                found.left_out.append(f"{drop}/{entry.name}")
                continue
            if like := known.like(entry.look):
                found.near.append(f"{drop}/{entry.name} (test image {like})")
                if near_copies == "drop":
                    continue
            found.drops[drop].append(entry)
    if found.near and near_copies == "refuse":
        raise UserError(
            f"{len(found.near)} training image(s) look like a test image: {first_ten(found.near)}; "
            "remove one of each, or set data.near_copies to drop to leave them out of training"
        )
    return found


def counts_of(found: Sorted, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many images of each class there are in each drop and in the test set; under '': without a label."""
    counted = {}
    for place, entries in {**found.drops, "test": found.test}.items():
        labels = Counter(entry.label for entry in entries)
        counted[place] = {name: labels[label] for label, name in enumerate(classes)}
        if labels[-1]:
            counted[place][""] = labels[-1]
    return counted


def _check_labels(entries: Iterable[ImageFacts], classes: Sequence[str]) -> None:
    first: dict[str, ImageFacts] = {}
    wrong = []
    for entry in entries:
        if entry.label < 0:
            continue
        other = first.setdefault(entry.sha256, entry)
        if other.label != entry.label:
            wrong.append(
                f"{entry.name} is labeled {classes[entry.label]}, and {other.name} {classes[other.label]}"
            )
    if wrong:
        raise UserError(
            f"{len(wrong)} image(s) have two labels, with the same pixels: {first_ten(wrong)}; "
            "remove what is wrong"
        )


def split_off(entries: Sequence[ImageFacts]) -> tuple[list[ImageFacts], list[ImageFacts]]:
    """Training and test images: a fifth of each class, chosen by the hash of the pixels alone."""
    sizes = Counter(entry.label for entry in entries)
    del sizes[-1]  # without a label: for training
    test: set[int] = set()
    taken: Counter[int] = Counter()
    last: dict[int, str] = {}
    for number in sorted(range(len(entries)), key=lambda number: entries[number].sha256):
        entry = entries[number]
        if entry.label < 0:
            continue
        quota = max(sizes[entry.label] // TEST_SHARE, min(1, sizes[entry.label] - 1))
        if taken[entry.label] < quota or last.get(entry.label) == entry.sha256:
            test.add(number)
            taken[entry.label] += 1
            last[entry.label] = entry.sha256
    return (
        [entry for number, entry in enumerate(entries) if number not in test],
        [entry for number, entry in enumerate(entries) if number in test],
    )
