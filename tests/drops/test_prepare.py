import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raw_drops import CLASSES, GRAY8, RGB8, class_folders, pixels, write_image

from crt.data.store import open_store
from crt.drops.copies import KnownImages
from crt.drops.images import pixel_hash
from crt.drops.npz import write_npz
from crt.drops.prepare import Checks, check_drop, prepare_drop, prepared_images, raw_images
from crt.errors import UserError
from crt.spec import ImageSpec


def prepare(source, out, spec=GRAY8, workers=0, **checks):
    return prepare_drop(source, out, spec=spec, checks=Checks(**checks), workers=workers)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prepared_drop_keeps_its_contract(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=3)
    summary = prepare(source, tmp_path / "out")
    assert summary == {
        "images": 9,
        "unlabelled": 0,
        "classes": {"cat": 3, "dog": 3, "owl": 3},
        "validation": {"images": 0, "classes": {"cat": 0, "dog": 0, "owl": 0}, "whole_classes": []},
        "changes": {},
        "duplicates": 0,
        "near_copies": None,
        "skipped": 0,
        "skipped_files": [],
        "ignored_files": 0,
        "ignored": {},
        "ignored_names": [],
    }
    images = np.load(tmp_path / "out" / "images.npy", allow_pickle=False)
    labels = np.load(tmp_path / "out" / "labels.npy", allow_pickle=False)
    assert (images.dtype, images.shape) == (np.uint8, (9, 8, 8, 1))
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    index = pd.read_parquet(tmp_path / "out" / "index.parquet")
    assert index.columns.tolist() == ["name", "sha256", "label", "source", "validation"]
    assert index.name.tolist() == [f"{name}/{i:03}.png" for name in CLASSES for i in range(3)]
    assert index.source.tolist() == index.name.tolist()
    assert index.label.tolist() == labels.tolist()
    assert not index.validation.any()
    for image, name, digest in zip(images, index.name, index.sha256, strict=True):
        assert np.array_equal(image[..., 0], np.asarray(Image.open(source / name)))
        assert digest == pixel_hash(image)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    fingerprint = meta.pop("fingerprint")
    assert len(bytes.fromhex(fingerprint)) == 32
    assert meta == {
        "format": 2,
        "classes": CLASSES,
        "image_size": 8,
        "channels": 1,
        "count": 9,
        "resize": "none",
        "shards": 1,
    }
    assert check_drop(source, spec=GRAY8) == summary
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.slow
def test_same_bytes_again_and_with_other_numbers_of_processes(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=200)  # enough for processes to be started
    for out, workers in (("a", 1), ("b", 2), ("c", 3)):
        prepare(source, tmp_path / out, workers=workers, validation=0.2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert open_store(tmp_path / "a").names == sorted(open_store(tmp_path / "a").names)


def test_the_same_images_as_files_and_as_an_archive(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=3)
    prepare(source, tmp_path / "files")
    store = open_store(tmp_path / "files")
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "a.npz", images=store.images[..., 0], labels=store.labels)
    prepare(tmp_path / "npz", tmp_path / "archive")
    other = open_store(tmp_path / "archive")
    assert np.array_equal(store.images, other.images)
    assert np.array_equal(store.labels, other.labels)
    assert other.names[:2] == ["a.npz#0", "a.npz#1"]
    assert store.hashes == other.hashes


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(1, 30), channels=st.sampled_from([1, 3]))
def test_round_trip_of_any_arrays(tmp_path_factory, data, count, channels):
    folder = tmp_path_factory.mktemp("trip")
    seeds = data.draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
    label_of = data.draw(st.lists(st.integers(-1, 2), min_size=13, max_size=13))
    labels = [label_of[seed] for seed in seeds]  # an image has one label
    images = np.stack([pixels(seed, 5, 5, channels) for seed in seeds])
    (folder / "raw").mkdir()
    write_npz(folder / "raw" / "a.npz", images=images, labels=np.array(labels))
    summary = prepare(folder / "raw", folder / "out", ImageSpec(tuple(CLASSES), 5, channels))
    store = open_store(folder / "out")
    assert np.array_equal(store.images, images)
    assert store.labels.tolist() == labels
    assert summary["duplicates"] == count - len(set(seeds))
    assert summary["unlabelled"] == labels.count(-1)
    assert summary["classes"] == {name: labels.count(label) for label, name in enumerate(CLASSES)}


def test_fingerprint_follows_everything_that_matters(tmp_path):
    source = class_folders(tmp_path / "raw")
    seen = set()

    def fingerprint(spec=GRAY8):
        prepare_drop(source, tmp_path / "out", spec=spec)
        return open_store(tmp_path / "out").fingerprint

    first = fingerprint()
    seen.add(first)
    seen.add(fingerprint(replace(GRAY8, resize="crop")))
    seen.add(fingerprint(replace(GRAY8, classes=(*CLASSES, "yak"))))
    write_image(source / "cat" / "000.png", pixels(99))
    seen.add(fingerprint())
    (source / "cat" / "001.png").rename(source / "dog" / "001b.png")
    seen.add(fingerprint())
    (source / "dog" / "001b.png").rename(source / "dog" / "001c.png")
    seen.add(fingerprint())
    assert len(seen) == 6
    class_folders(source)
    (source / "dog" / "001c.png").unlink()
    assert fingerprint() == first


def split_of(source, out, share, **options):
    summary = prepare(source, out, validation=share, **options)
    store = open_store(out)
    return summary["validation"], {n for n, aside in zip(store.names, store.validation, strict=True) if aside}


def test_a_share_is_set_aside_by_content(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=100)
    counts, small = split_of(source, tmp_path / "out", 0.2)
    assert 30 <= len(small) <= 90
    assert counts["images"] == len(small) == sum(counts["classes"].values())
    assert counts["classes"]["cat"] == len([name for name in small if name.startswith("cat/")]) > 0
    assert counts["whole_classes"] == []
    assert check_drop(source, spec=GRAY8, checks=Checks(validation=0.2))["validation"] == counts
    _, large = split_of(source, tmp_path / "out", 0.6)
    assert small < large
    assert 130 <= len(large) <= 230
    assert split_of(source, tmp_path / "out", 0.0)[1] == set()


def test_an_image_stays_on_its_side(tmp_path):
    """Whatever else is in its drop, under another name, class or file format, or in an archive."""
    source = class_folders(tmp_path / "raw", per_class=30)
    _, aside = split_of(source, tmp_path / "out", 0.3)
    other = tmp_path / "other"
    for place, name in enumerate(sorted(aside)):
        write_image(other / CLASSES[place % 3] / f"renamed{place}.bmp", np.asarray(Image.open(source / name)))
    counts, _ = split_of(other, tmp_path / "other.out", 0.3)
    assert counts["images"] == len(aside)
    assert counts["whole_classes"] == CLASSES
    for name in aside:
        (source / name).unlink()
    assert split_of(source, tmp_path / "out", 0.3)[1] == set()
    (tmp_path / "npz").mkdir()
    images = open_store(tmp_path / "other.out").images
    write_npz(tmp_path / "npz" / "a.npz", images=images, labels=np.arange(len(images)) % 3)
    assert split_of(tmp_path / "npz", tmp_path / "out", 0.3)[0]["images"] == len(aside)


def test_unlabeled_images_are_never_set_aside(tmp_path):
    (tmp_path / "raw").mkdir()
    images, labels = np.stack([pixels(seed) for seed in range(60)]), np.arange(60) % 4 - 1
    write_npz(tmp_path / "raw" / "a.npz", images=images, labels=labels)
    prepare(tmp_path / "raw", tmp_path / "out", validation=0.9)
    store = open_store(tmp_path / "out")
    assert store.validation[store.labels >= 0].mean() > 0.7
    assert not store.validation[store.labels < 0].any()


def test_the_fingerprint_follows_the_split(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=30)
    fingerprints, sides = [], []
    for share in (0.0, 1e-9, 0.3, 0.6):
        sides.append(split_of(source, tmp_path / "out", share)[1])
        fingerprints.append(open_store(tmp_path / "out").fingerprint)
    assert sides[0] == sides[1] == set()
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_duplicates_are_found_across_file_formats(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=2)
    write_image(source / "cat" / "again.bmp", pixels(0))  # cat/000.png's pixels
    write_image(source / "cat" / "deep" / "again.tif", pixels(0))
    assert prepare(source, tmp_path / "out")["duplicates"] == 2


def test_the_same_image_under_two_labels_is_an_error_that_names_both(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=2)
    write_image(source / "dog" / "again.bmp", pixels(0))
    write_image(source / "owl" / "again.tif", pixels(0))
    with pytest.raises(
        UserError,
        match=r"2 image\(s\) under two labels: dog/again.bmp is labeled dog, and the same image as "
        r"cat/000.png cat, owl/again.tif is labeled owl, and the same image as cat/000.png cat; "
        "remove what is wrong",
    ):
        prepare(source, tmp_path / "out", skip_unreadable=True)


def test_an_unlabeled_copy_contradicts_nothing_but_what_it_stands_for_does(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_npz(raw / "a.npz", images=np.stack([pixels(0)] * 3), labels=np.array([-1, 1, 1]))
    assert prepare(raw, tmp_path / "out")["duplicates"] == 2
    write_npz(raw / "b.npz", images=pixels(0)[None], labels=np.array([2]))
    with pytest.raises(UserError, match=r"b.npz#0 is labeled owl, and the same image as a.npz#1 dog"):
        prepare(raw, tmp_path / "out")


def test_unreadable_files_fail_with_their_list(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=20)
    for index in range(11):
        path = source / "cat" / f"{index:03}.png"
        path.write_bytes(path.read_bytes()[:60])
    (source / "dog" / "text.png").write_text("I am no image")
    with pytest.raises(UserError) as error:
        prepare(source, tmp_path / "out")
    message = str(error.value)
    assert "12 unreadable image(s): cat/000.png (" in message
    assert "cat/009.png" in message
    assert "and 2 more" in message
    assert "text.png" not in message
    assert "set skip_unreadable to true" in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_unreadable_files_are_listed_in_the_metric_when_skipping_is_permitted(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=3)
    prepare(source, tmp_path / "whole")
    truncated = source / "cat" / "001.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    (source / "dog" / "text.png").write_text("I am no image")
    summary = prepare(source, tmp_path / "out", skip_unreadable=True)
    assert summary["images"] == 8
    assert summary["skipped"] == 2
    assert [entry.split(" (")[0] for entry in summary["skipped_files"]] == ["cat/001.png", "dog/text.png"]
    store, whole = open_store(tmp_path / "out"), open_store(tmp_path / "whole")
    keep = [index for index, name in enumerate(whole.names) if name != "cat/001.png"]
    assert np.array_equal(store.images, whole.images[keep])
    assert store.labels.tolist() == whole.labels[keep].tolist()
    assert store.names == [whole.names[index] for index in keep]
    # As if the unreadable files had never been there, to the byte.
    truncated.unlink()
    (source / "dog" / "text.png").unlink()
    prepare(source, tmp_path / "without")
    assert contents(tmp_path / "out") == contents(tmp_path / "without")


def test_files_that_are_no_images_are_counted_by_kind(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=1)
    for name in ("README.md", "cat/a.txt", "cat/b.TXT"):
        (source / name).write_text("x")
    summary = prepare(source, tmp_path / "out")
    assert (summary["ignored_files"], summary["ignored"]) == (3, {".md": 1, ".txt": 2})
    assert sorted(summary["ignored_names"]) == ["README.md", "cat/a.txt", "cat/b.TXT"]


def test_what_was_done_to_images_is_counted(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(3):
        write_image(source / "cat" / f"turned{index}.png", pixels(100 + index), exif=exif)
    frames = [Image.fromarray(pixels(seed)) for seed in (200, 201)]
    frames[0].save(source / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    spec = replace(RGB8, resize="crop")
    summary = prepare(source, tmp_path / "out", spec)
    assert summary["changes"] == {"turned": 3, "first_frame": 1, "from_gray": 9}  # a GIF has a palette


def test_pictures_in_formats_that_are_not_read_are_unreadable_images(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=1)
    (source / "cat" / "camera.nef").write_bytes(b"MM\0*" + bytes(50))
    with pytest.raises(
        UserError, match=r"1 unreadable image\(s\): cat/camera.nef \(.nef is not read\); convert"
    ):
        prepare(source, tmp_path / "out")
    summary = prepare(source, tmp_path / "out", skip_unreadable=True)
    assert summary["skipped_files"] == ["cat/camera.nef (.nef is not read)"]
    assert summary["ignored_files"] == 0


def test_the_remedy_for_images_that_do_not_fit_is_one_that_works(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=1)
    write_image(source / "cat" / "clear.png", pixels(0, 8, 8, 4))
    with pytest.raises(UserError, match=r"cat/clear.png \(transparent pixels\); convert them$"):
        prepare(source, tmp_path / "out")
    write_image(source / "cat" / "large.png", pixels(0, 9, 9))
    with pytest.raises(UserError, match=r"convert them, or set resize to crop or squash for 1 of them$"):
        prepare(source, tmp_path / "out")


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path):
    (tmp_path / "raw" / "cat").mkdir(parents=True)
    (tmp_path / "raw" / "cat" / "a.png").write_text("no")
    with pytest.raises(UserError, match="no readable image"):
        prepare(tmp_path / "raw", tmp_path / "out", skip_unreadable=True)


def test_other_size_or_mode_fails_even_when_skipping(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=1)
    write_image(source / "cat" / "big.png", pixels(0, 9, 9))
    write_image(source / "dog" / "color.png", pixels(0, 8, 8, 3))
    with pytest.raises(
        UserError,
        match=r"2 image\(s\) of the wrong size or mode: cat/big.png \(9x9 pixels instead of 8x8\), "
        r"dog/color.png \(mode RGB instead of L\)",
    ):
        prepare(source, tmp_path / "out", skip_unreadable=True)
    np.savez(tmp_path / "a.npz", images=pixels(0, 3, 9, 9))
    (tmp_path / "npz").mkdir()
    (tmp_path / "a.npz").rename(tmp_path / "npz" / "a.npz")
    with pytest.raises(UserError, match=r"3 image\(s\) of the wrong size or mode: a.npz#0"):
        prepare(tmp_path / "npz", tmp_path / "out")


def test_resizing_applies_to_files_and_archives(tmp_path):
    spec = replace(RGB8, resize="crop")
    array = pixels(0, 10, 14, 3)
    write_image(tmp_path / "files" / "a.png", array)
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "a.npz", images=array[None])
    for name in ("files", "npz"):
        prepare(tmp_path / name, tmp_path / f"{name}.out", spec)
    expected = np.asarray(Image.fromarray(array[:, 2:12]).resize((8, 8), Image.Resampling.BILINEAR))
    for name in ("files", "npz"):
        assert np.array_equal(open_store(tmp_path / f"{name}.out").images[0], expected)


def test_images_of_the_test_set_are_named(tmp_path):
    test = class_folders(tmp_path / "test", per_class=1, first_seed=1000)
    prepare(test, tmp_path / "out" / "test", need_labels=True)
    hashes = prepared_images(tmp_path / "out" / "test")
    store = open_store(tmp_path / "out" / "test")
    assert hashes.by_hash == dict(zip(store.hashes, store.names, strict=True))
    assert hashes == raw_images(test, spec=GRAY8)
    train = class_folders(tmp_path / "train", per_class=2)
    prepare(train, tmp_path / "out" / "train", tested=hashes)
    for index in range(11):
        # The test set's owl/000.png, in another format.
        write_image(train / "owl" / f"copy{index:02}.bmp", pixels(1002))
    with pytest.raises(UserError) as error:
        prepare(train, tmp_path / "out" / "train2", tested=hashes)
    message = str(error.value)
    assert "11 image(s) that also stand in the test set: owl/copy00.bmp (test image owl/000.png)" in message
    assert "owl/copy09.bmp" in message
    assert "copy10" not in message


def test_all_findings_come_at_once(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=1)
    write_image(source / "cat" / "big.png", pixels(0, 9, 9))
    (source / "cat" / "text.png").write_text("no")
    hashes = KnownImages({pixel_hash(pixels(1)[..., None]): "owl/7.png"})
    with pytest.raises(
        UserError, match=r"1 unreadable .* 1 image\(s\) of the wrong size .* 1 image\(s\) that also"
    ):
        prepare(source, tmp_path / "out", tested=hashes)


def test_test_set_needs_labels(tmp_path):
    write_image(tmp_path / "raw" / "a.png", pixels(0))
    assert prepare(tmp_path / "raw", tmp_path / "out")["unlabelled"] == 1
    with pytest.raises(UserError, match=r"1 unlabeled image\(s\), but a test set needs labels"):
        prepare(tmp_path / "raw", tmp_path / "out", need_labels=True)


def test_a_failure_leaves_the_former_drop(tmp_path):
    source = class_folders(tmp_path / "raw")
    prepare(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    (source / "cat" / "text.png").write_text("no")
    with pytest.raises(UserError):
        prepare(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (source / "cat" / "text.png").unlink()
    (source / "cat" / "000.png").unlink()
    prepare(source, tmp_path / "out")
    assert len(open_store(tmp_path / "out")) == 11


SCRIPT = """
import sys
from pathlib import Path
from crt.spec import ImageSpec
from crt.drops.prepare import prepare_drop
if __name__ == "__main__":
    source, out, size, workers = sys.argv[1:]
    prepare_drop(Path(source), Path(out), spec=ImageSpec(("cat", "dog", "owl"), int(size), 1),
                 workers=int(workers))
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_kill_leaves_nothing_half_written(tmp_path):
    (tmp_path / "raw").mkdir()
    write_npz(tmp_path / "raw" / "a.npz", images=np.zeros((20_000, 64, 64), np.uint8))
    out = tmp_path / "prepared" / "out"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path / "raw", out, "64", "1"])
    started = tmp_path / "prepared" / "out.partial" / "images.npy"
    deadline = time.monotonic() + 60
    while not (started.exists() and started.stat().st_size > 1 << 20) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    prepare(tmp_path / "raw", out, replace(GRAY8, size=64))
    assert len(open_store(out)) == 20_000
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """75 MB of pixels more may cost only their names and hashes."""
    peaks = []
    for count in (600, 2000):
        raw = tmp_path / str(count)
        image = write_image(tmp_path / "one.png", np.zeros((232, 232), np.uint8))
        (raw / "cat").mkdir(parents=True)
        for index in range(count):
            os.link(image, raw / "cat" / f"{index}.png")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, raw, tmp_path / f"{count}.out", "232", "2"],
            capture_output=True,
            check=True,
            text=True,
        )
        peaks.append(int(done.stdout) * (1024 if sys.platform != "darwin" else 1))
    assert peaks[1] - peaks[0] < 30 << 20
