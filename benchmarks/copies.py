"""Near copies: which copies of an image file look the same (crt/drops/copies.py), how many other pairs do.

    python benchmarks/copies.py FOLDER [FOLDER ...] [--size 32] [--images 10000] [--copied 500]

Each FOLDER holds class folders of images. Files are copied as other programs do; files and copies are brought
to --size pixels, the middle of each, as the stage `prepare` does.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from crt.drops.copies import MOST, look_of
from crt.drops.images import decode_image
from crt.drops.layout import walk_files
from crt.spec import ImageSpec

RESULTS = Path(__file__).parent / "results" / "copies.md"


def jpeg(quality: int) -> Callable[[Image.Image, Path], None]:
    return lambda image, path: image.save(path, "JPEG", quality=quality)


def scaled(factor: float) -> Callable[[Image.Image, Path], None]:
    def copy(image: Image.Image, path: Path) -> None:
        size = (round(image.width * factor), round(image.height * factor))
        image.resize(size, Image.Resampling.LANCZOS).save(path, "PNG")

    return copy


def brighter(image: Image.Image, path: Path) -> None:
    Image.eval(image, lambda value: min(255, value + 8)).save(path, "PNG")


def cropped(image: Image.Image, path: Path) -> None:
    edge = [round(side * 0.025) for side in image.size]
    image.crop((edge[0], edge[1], image.width - edge[0], image.height - edge[1])).save(path, "PNG")


def mirrored(image: Image.Image, path: Path) -> None:
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path, "PNG")


COPIES = {
    "JPEG of quality 92": jpeg(92),
    "JPEG of quality 75": jpeg(75),
    "JPEG of quality 50": jpeg(50),
    "scaled to 0.7": scaled(0.7),
    "scaled to 0.5": scaled(0.5),
    "doubled": scaled(2),
    "8 gray levels brighter": brighter,
    "5 % cropped": cropped,
    "mirrored": mirrored,
}


def looks(paths: Sequence[Path], spec: ImageSpec) -> np.ndarray:
    """Those of image files, uint64 [N, 3]."""
    found = b"".join(look_of(decode_image(path, spec)) for path in paths)
    return np.frombuffer(found, np.uint64).reshape(len(paths), -1)


def share_found(copy: Callable[[Image.Image, Path], None], paths: Sequence[Path], spec: ImageSpec) -> float:
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / f"{number}.img" for number in range(len(paths))]
        for path, place in zip(paths, copies, strict=True):
            with Image.open(path) as image:
                copy(image.convert("RGB"), place)
        apart = np.bitwise_count(looks(paths, spec) ^ looks(copies, spec)).sum(axis=1)
    return float((apart <= MOST).mean())


def alike(found: np.ndarray) -> int:
    """The number of pairs that look the same."""
    count = 0
    for number in range(len(found) - 1):
        apart = np.bitwise_count(found[number + 1 :] ^ found[number]).sum(axis=1)
        count += int((apart <= MOST).sum())
    return count


def measure(folder: Path, size: int, args: argparse.Namespace) -> list[str]:
    """What the table says of a folder, without its name."""
    spec = ImageSpec(("any",), size, 3, "crop")
    paths = walk_files(folder)
    paths = paths[:: max(1, len(paths) // args.images)][: args.images]
    copied = paths[:: max(1, len(paths) // args.copied)][: args.copied]
    shares = [f"{share_found(copy, copied, spec):.1%}" for copy in COPIES.values()]
    pairs = len(paths) * (len(paths) - 1) // 2
    return [str(len(copied)), str(size), *shares, f"{alike(looks(paths, spec))} of {pairs:,}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument(
        "--size", type=int, nargs="+", default=[32], help="pixels, one for all or one a folder"
    )
    parser.add_argument("--images", type=int, default=10_000, help="of which all pairs are compared")
    parser.add_argument("--copied", type=int, default=500)
    args = parser.parse_args()
    sizes = args.size * len(args.folders) if len(args.size) == 1 else args.size
    rows = [
        [folder.name, *measure(folder, size, args)] for folder, size in zip(args.folders, sizes, strict=True)
    ]
    head = ["images of", "copied", "pixels", *COPIES, "pairs of different images"]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    text = (
        "# Near copies\n\n`benchmarks/copies.py`: the share of copies of image files that look the same as "
        "the file, "
        "and the pairs of\ndifferent files that do (some of them are copies in truth).\n\n"
    )
    RESULTS.write_text(text + "\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
