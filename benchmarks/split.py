"""The validation split: how many copies of an image fall on its side, and how evenly it fills the classes.

    python benchmarks/split.py FOLDER [FOLDER ...] [--size 32] [--share 0.1] [--images 5000]

Each FOLDER holds class folders of images. They are brought to --size pixels, the middle of each, as the stage
`prepare` does.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from crt.drops.images import decode_image
from crt.drops.layout import walk_files
from crt.drops.split import content_key, in_validation
from crt.spec import ImageSpec

RESULTS = Path(__file__).parent / "results" / "split.md"


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def copy(image: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream))

    return copy


def half_size(image: np.ndarray) -> np.ndarray:
    size = len(image)
    small = Image.fromarray(image).resize((size // 2, size // 2), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((size, size), Image.Resampling.BILINEAR))


def brighter(image: np.ndarray) -> np.ndarray:
    return np.clip(image.astype(int) + 8, 0, 255).astype(np.uint8)


def shifted(image: np.ndarray) -> np.ndarray:
    return np.concatenate([image[:, 1:], image[:, -1:]], axis=1)


def mirrored(image: np.ndarray) -> np.ndarray:
    return image[:, ::-1]


COPIES = {
    "8 gray levels brighter": brighter,
    "JPEG of quality 90": jpeg(90),
    "JPEG of quality 60": jpeg(60),
    "half the size and back": half_size,
    "shifted by one pixel": shifted,
    "mirrored": mirrored,
}


def load(folder: Path, size: int, count: int) -> tuple[list[np.ndarray], list[str]]:
    """At most `count` images of a folder, evenly taken, uint8 [size, size, 3], and their classes."""
    spec = ImageSpec(("any",), size, 3, "crop")
    paths = walk_files(folder)
    paths = paths[:: max(1, len(paths) // count)][:count]
    return [decode_image(path, spec) for path in paths], [path.relative_to(folder).parts[0] for path in paths]


def measure(folder: Path, args: argparse.Namespace) -> list[str]:
    """What the table says of a folder, without its name."""
    images, classes = load(folder, args.size, args.images)
    keys = [content_key(image) for image in images]
    together = []
    for copy in COPIES.values():
        same = np.mean([content_key(copy(image)) == key for image, key in zip(images, keys, strict=True)])
        together.append(f"{same + (1 - same) * args.share:.0%}")  # another key is in the split by chance
    aside = np.array([in_validation(image, args.share) for image in images])
    by_class = [aside[np.array(classes) == name].mean() for name in sorted(set(classes))]
    return [
        str(len(images)),
        str(args.size),
        *together,
        f"{aside.mean():.1%}",
        f"{min(by_class):.1%} to {max(by_class):.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument(
        "--size", type=int, nargs="+", default=[32], help="pixels, one for all or one a folder"
    )
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=5000)
    args = parser.parse_args()
    sizes = args.size * len(args.folders) if len(args.size) == 1 else args.size
    rows = []
    for folder, size in zip(args.folders, sizes, strict=True):
        rows.append([folder.name, *measure(folder, argparse.Namespace(**{**vars(args), "size": size}))])
    head = ["images of", "number", "pixels", *COPIES, "set aside", "of each class"]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    text = (
        f"# The validation split\n\n`benchmarks/split.py`, data.validation = {args.share:g}: of the images "
        "that are set aside, the share of\ncopies that are set aside too; and the share of all images, "
        "and of each class', that is set aside.\n\n"
    )
    RESULTS.write_text(text + "\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
