"""What `crt ingest` says of a delivery beside the drops that came before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crt.data.store import Store, open_store
from crt.datasets.drift import SIZE, Finding, Sample, class_drift, pixel_drift, value_drift
from crt.drops.prepare import DecodedImage
from crt.errors import UserError, first_ten
from crt.spec import ImageSpec, check_fits, to_unit

if TYPE_CHECKING:
    from torch import nn


class Arrived:
    """Looks at each image of a delivery, and compares with the earlier drops that are prepared here."""

    def __init__(self, root: Path, drops: Sequence[str], classes: Sequence[str]) -> None:
        self._root, self._classes = root, classes
        self._earlier = [store for drop in drops if (store := _store(root / "prepared/train" / drop))]
        self._known = {  # pixel hash -> the drop and the number of the image there
            digest: (store, number) for store in self._earlier for number, digest in enumerate(store.hashes)
        }
        self._sample = Sample()
        self._again = 0
        self._contradictions: list[str] = []

    def look(self, row: DecodedImage) -> None:
        self._sample.add(row.pixels, row.label)
        if row.sha256 not in self._known:
            return
        self._again += 1
        store, number = self._known[row.sha256]
        before = int(store.labels[number])
        if row.label >= 0 and before >= 0 and row.label != before:
            self._contradictions.append(
                f"{row.name} is labeled {self._classes[row.label]}, and the same image as "
                f"{store.names[number]} of the drop {store.path.name} {self._classes[before]}"
            )

    def check(self, source: Path) -> None:
        """Make sure that no image of the delivery stands in an earlier drop under another label.

        Raises:
            UserError: One does.
        """
        if self._contradictions:
            raise UserError(
                f"{source} has {len(self._contradictions)} image(s) that an earlier drop labels otherwise: "
                f"{first_ten(self._contradictions)}; remove them, or the earlier drop (`crt drop-data`) "
                "if it is wrong"
            )

    def report(self) -> None:
        """Print copies of earlier images, and the drift."""
        if not self._earlier:
            print("  not compared with earlier drops: none is prepared here (`dvc repro` or `dvc pull`)")
            return
        if self._again:
            print(f"  also in earlier drops: {self._again} ({self._again / self._sample.seen:.1%})")
        findings = self._findings()
        width = max(len(finding.quantity) for finding in findings)
        print(f"  drift against the earlier drops ({', '.join(store.path.name for store in self._earlier)}):")
        for found in findings:
            mark = "  <- unlikely by chance" if found.unlikely else ""
            print(
                f"    {found.quantity:{width}}  {found.before:>6} -> {found.now:>6}   p = {found.p:.2g}{mark}"
            )

    def _findings(self) -> list[Finding]:
        now = np.stack(self._sample.images)
        before = _some_images(self._earlier)
        labels = np.concatenate([store.labels for store in self._earlier]).tolist()
        by_class = class_drift(labels, self._sample.labels, self._classes)
        by_model = _confidence_drift(self._root, self._earlier[0].spec, before, now)
        return [
            *([by_class] if by_class else []),
            *pixel_drift(before, now),
            *([by_model] if by_model else []),
        ]


def _store(path: Path) -> Store | None:
    try:
        return open_store(path)
    except UserError:  # not prepared here, or by another version: nothing to compare with
        return None


def _some_images(stores: Sequence[Store]) -> np.ndarray:
    """Up to SIZE images of the stores together, uint8 [N, H, W, C], chosen at random."""
    starts = np.cumsum([0, *(len(store) for store in stores)])
    chosen = np.sort(np.random.default_rng(0).permutation(starts[-1])[:SIZE])
    return np.concatenate(
        [
            store.images[chosen[(chosen >= start) & (chosen < start + len(store))] - start]
            for store, start in zip(stores, starts[:-1], strict=True)
        ]
    )


def _confidence_drift(root: Path, spec: ImageSpec, before: np.ndarray, now: np.ndarray) -> Finding | None:
    """How sure the base classifier of the release, or of the last student, is on clean images."""
    for role, name in (("baseline", "the release"), ("student", "the last student")):
        folder = root / "models" / role
        if not folder.is_dir():
            continue
        from crt.models.checkpoint import load_model

        try:
            model, info = load_model(folder)
            check_fits(str(folder), info.spec, "the drops", spec, "take another model")
        except UserError:  # damaged, or made for other images: nothing to compare with
            continue
        confidence = [_confidence(model, images) for images in (before, now)]
        return value_drift(f"confidence of {name}", confidence[0], confidence[1])
    return None


def _confidence(model: "nn.Module", images: np.ndarray) -> np.ndarray:
    """The largest class probability per image."""
    import torch

    with torch.inference_mode():
        parts = [
            model(to_unit(part)).softmax(1).amax(1)
            for part in np.array_split(images, max(1, len(images) // 100))
        ]
    return torch.cat(parts).numpy()
