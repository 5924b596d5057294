"""What `crt get-data` and `crt ingest` say about images: what was done to them, and what is not used."""

from collections.abc import Mapping
from typing import Any

from crt.datasets.sources import DataSet
from crt.drops.images import CHANGES
from crt.errors import first_ten

_CLASSES_SHOWN = 30


def of_summary(summary: Mapping[str, Any]) -> list[str]:
    """The lines about a drop's summary (`crt.drops.prepare`) that follow its first one."""
    total = summary["images"]
    lines = []
    if summary["unlabelled"]:
        lines.append(f"unlabeled: {_share(summary['unlabelled'], total)}")
    if summary["duplicates"]:
        lines.append(f"copies of others in the drop: {_share(summary['duplicates'], total)}")
    lines += of_changes(summary["changes"])
    if near := summary["near_copies"]:
        lines += of_near_copies(near["files"], near["images"], left_out=near["left_out"])
    if aside := summary["validation"]["images"]:
        lines.append(f"set aside for validation: {_share(aside, total)}")
    if whole := summary["validation"]["whole_classes"]:
        lines.append(f"no image is left for training of the class: {first_ten(whole)}")
    if summary["skipped"]:
        lines.append(
            f"unreadable, left out when prepared: {summary['skipped']}: {first_ten(summary['skipped_files'])}"
        )
    if summary["ignored"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in summary["ignored"].items())
        named = first_ten(summary["ignored_names"], summary["ignored_files"])
        lines.append(f"other files, not used: {summary['ignored_files']} ({kinds}): {named}")
    return lines


def of_data_set(found: DataSet, near_left_out: bool) -> list[str]:
    """The lines about a data set that was written, which follow its first one."""
    lines = [f"{place}: {_counted(counts)}" for place, counts in found.counts.items()]
    missing = [
        name
        for name in found.classes
        if found.counts and not any(found.counts[drop][name] for drop in found.drops)
    ]
    if missing:
        lines.append(f"no training image is of the class: {first_ten(missing)}")
    lines += found.told
    lines += of_changes(found.changes)
    if found.left_out:
        lines.append(
            "left out of training, as the test set has them too: "
            f"{len(found.left_out)}: {first_ten(found.left_out)}"
        )
    lines += of_near_copies(found.near, len(found.near), left_out=near_left_out)
    if found.skipped:
        lines.append(f"left out, unreadable: {len(found.skipped)}: {first_ten(found.skipped)}")
    if found.ignored:
        lines.append(f"other files, not used: {len(found.ignored)}: {first_ten(found.ignored)}")
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    """How many images there are, and of which classes."""
    labeled = {name: count for name, count in counts.items() if name}
    if len(labeled) > _CLASSES_SHOWN:
        by_class = f"{min(labeled.values())} to {max(labeled.values())} of each of {len(labeled)} classes"
    else:
        by_class = ", ".join(f"{name} {count}" for name, count in labeled.items())
    parts = [by_class] if any(labeled.values()) else []
    if unlabeled := counts.get(""):
        parts.append(f"{unlabeled} without a label")
    return f"{sum(counts.values())} images ({', '.join(parts)})"


def of_changes(changes: Mapping[str, int]) -> list[str]:
    """What was done to how many images."""
    return [f"{CHANGES[change]}: {count}" for change, count in changes.items()]


def of_near_copies(names: list[str], count: int, *, left_out: bool) -> list[str]:
    """Training images that look like a test image."""
    if not count:
        return []
    done = "left out of training" if left_out else "kept (data.near_copies=drop leaves them out)"
    return [f"near copies of test images, {done}: {count}: {first_ten(names, count)}"]


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})"
