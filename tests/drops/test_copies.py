"""Near copies of test images.

Made-up photographs stand for real ones; docs/data.md has the numbers of real ones.
"""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from raw_drops import CLASSES, write_image

from crt.data.store import open_store
from crt.drops.copies import MOST, KnownImages, look_of
from crt.drops.prepare import Checks, check_drop, prepare_drop, prepared_images
from crt.errors import UserError
from crt.spec import ImageSpec

SPEC = ImageSpec(tuple(CLASSES), 32, 3, "crop")


def photo(seed, size=128):
    """Colors whose detail falls off with its frequency as in photographs; not square."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size + 40))
    spectrum = np.fft.fft2(rng.normal(size=(3, size, size + 40))) / np.maximum(frequency, 1 / size) ** 1.5
    colors = np.fft.ifft2(spectrum).real.transpose(1, 2, 0)
    return Image.fromarray((colors / colors.std() * 45 + 128).clip(0, 255).astype(np.uint8))


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def scaled(image, factor):
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


COPIES = {
    "JPEG of quality 92": lambda image: jpeg(image, 92),
    "JPEG of quality 60": lambda image: jpeg(image, 60),
    "scaled to 0.7": lambda image: scaled(image, 0.7),
    "doubled": lambda image: scaled(image, 2),
    "brighter": lambda image: Image.eval(image, lambda value: min(255, value + 8)),
}


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tested")
    for seed in range(20):
        write(folder / "raw" / CLASSES[seed % 3] / f"{seed:02}.png", photo(seed))
    prepare_drop(folder / "raw", folder / "test", spec=SPEC, checks=Checks(need_labels=True))
    return prepared_images(folder / "test")


def write(path, image):
    write_image(path, np.asarray(image), compress_level=0)


def test_re_encoded_and_scaled_copies_are_found_under_the_right_name(tmp_path, tested):
    for seed in range(20):
        for name, copy in COPIES.items():
            write(tmp_path / "cat" / f"{name} {seed:02}.png", copy(photo(seed)))
        write(tmp_path / "dog" / f"other {seed:02}.png", photo(1000 + seed))
    found = check_drop(tmp_path, spec=SPEC, checks=Checks(tested=tested))
    assert found["images"] == 20 * (len(COPIES) + 1)
    near = found["near_copies"]
    assert near["images"] == len(near["files"])
    assert not near["left_out"]
    counts = Counter()
    for line in near["files"]:
        name, _, other = line.partition(" (test image ")
        assert name[-6:-4] == other.removesuffix(")")[-6:-4]
        counts[name[4:-7]] += 1
    assert counts.keys() == COPIES.keys(), "another photograph"
    assert min(counts.values()) >= 19


def test_they_are_listed_dropped_or_refused(tmp_path, tested):
    drop = tmp_path / "drop"
    write(drop / "cat" / "copy.png", jpeg(photo(3), 92))
    write(drop / "cat" / "new.png", photo(500))
    for setting, names in (("list", ["cat/copy.png", "cat/new.png"]), ("drop", ["cat/new.png"])):
        found = prepare_drop(
            drop, tmp_path / "out" / setting, spec=SPEC, checks=Checks(tested=tested, near_copies=setting)
        )
        assert open_store(tmp_path / "out" / setting).names == names
        assert found["images"] == len(names)
        assert found["near_copies"] == {
            "images": 1,
            "left_out": setting == "drop",
            "files": ["cat/copy.png (test image cat/03.png)"],
        }
    with pytest.raises(
        UserError,
        match=r"1 image\(s\) that look like a test image: cat/copy.png \(test image cat/03.png\); "
        "remove them from the drop, or set near_copies to drop",
    ):
        check_drop(drop, spec=SPEC, checks=Checks(tested=tested, near_copies="refuse"))
    (drop / "cat" / "new.png").unlink()
    with pytest.raises(
        UserError, match=r"holds no readable image that does not look like a test image \(cat/copy"
    ):
        check_drop(drop, spec=SPEC, checks=Checks(tested=tested, near_copies="drop"))


def test_the_nearest_of_those_that_look_alike_is_named():
    known = KnownImages()
    first = np.frombuffer(look_of(np.asarray(photo(0).resize((32, 32)))), np.uint8)
    for name, flips in (("far", 8), ("near", 3), ("other", MOST + 1)):
        look = first.copy()
        look[:flips] ^= 128  # one sign in each byte
        known.add(name, name, look.tobytes())
    assert known.like(first.tobytes()) == "near"
    eleven = first.copy()
    eleven[:] ^= 1  # 18 more signs
    assert known.like(eleven.tobytes()) is None


def test_small_images_are_compared_by_their_pixels_alone(tmp_path):
    assert look_of(np.zeros((15, 15, 1), np.uint8)) == b""
    assert len(look_of(np.zeros((16, 16, 1), np.uint8))) == 24
    assert KnownImages().like(b"") is None
