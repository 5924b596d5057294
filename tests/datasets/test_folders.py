import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raw_drops import CLASSES, class_folders, pixels, write_image

from crt.commands import told
from crt.datasets import folders
from crt.datasets.folders import write_folder
from crt.drops.prepare import prepare_drop, raw_images
from crt.errors import UserError
from crt.spec import ImageSpec


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def hashes(folder, classes=CLASSES, resize="crop"):
    return set(raw_images(folder, spec=ImageSpec(tuple(classes), 8, 1, resize)).by_hash)


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_of_class_folders(tmp_path, test_name):
    class_folders(tmp_path / "in" / "train", 3)
    class_folders(tmp_path / "in" / test_name, 2, first_seed=100)
    found = write_folder(tmp_path / "out", tmp_path / "in", "pets")
    assert (found.name, found.classes, found.channels, found.image_size) == ("pets", CLASSES, 1, 8)
    assert found.drops == ["base"]
    assert found.left_out == found.skipped == []
    assert tree(tmp_path / "out" / "train" / "base") == tree(tmp_path / "in" / "train")
    assert tree(tmp_path / "out" / "test") == tree(tmp_path / "in" / test_name)
    assert (tmp_path / "out" / "classes.txt").read_text() == "cat\ndog\nowl\n"


def test_drops_of_class_folders(tmp_path):
    for index, drop in enumerate(("2024", "2025")):
        class_folders(tmp_path / "in" / "train" / drop, 2, first_seed=10 * index)
    class_folders(tmp_path / "in" / "test", 2, first_seed=100)
    found = write_folder(tmp_path / "out", tmp_path / "in", "pets")
    assert found.drops == ["2024", "2025"]
    assert tree(tmp_path / "out" / "train") == tree(tmp_path / "in" / "train")


@settings(max_examples=15, deadline=None)
@given(seeds=st.lists(st.integers(0, 25), min_size=4, max_size=30), salt=st.integers(0, 10**6))
def test_a_fifth_becomes_the_test_set(tmp_path_factory, seeds, salt):
    """Whatever the images, with duplicates: nothing is lost, nothing of the test set stands in training."""
    folder = tmp_path_factory.mktemp("split")
    names = ["cat", "dog"]
    for index, seed in enumerate([0, 1, *seeds]):
        write_image(folder / "in" / names[seed % 2] / f"{index}.png", pixels(salt + seed))
    found = write_folder(folder / "out", folder / "in", "pets")
    test, train = tree(folder / "out" / "test"), tree(folder / "out" / "train" / "base")
    left_out = [name.removeprefix("base/") for name in found.left_out]
    assert sorted(test + train + left_out) == tree(folder / "in")
    assert test
    if train:
        assert not hashes(folder / "out" / "test", names, "none") & hashes(
            folder / "out" / "train" / "base", names, "none"
        )


def test_a_training_part_alone_is_split(tmp_path):
    class_folders(tmp_path / "in" / "train", 5)
    found = write_folder(tmp_path / "out", tmp_path / "in", "pets")
    assert found.told == ["test set: a fifth of each class, by the pixels alone"]
    assert {place: sum(counts.values()) for place, counts in found.counts.items()} == {"base": 12, "test": 3}


def test_the_split_is_stratified_and_depends_on_the_pixels_alone(tmp_path):
    source = class_folders(tmp_path / "in", 25)
    write_folder(tmp_path / "out", source, "pets")
    test = tree(tmp_path / "out" / "test")
    assert [sum(name.startswith(cls) for name in test) for cls in CLASSES] == [5, 5, 5]
    chosen = hashes(tmp_path / "out" / "test")
    for cls in CLASSES:  # other names, another order
        for path in sorted((source / cls).iterdir()):
            path.rename(path.with_name(f"{1000 - int(path.stem)}.png"))
    write_folder(tmp_path / "again", source, "pets")
    assert hashes(tmp_path / "again" / "test") == chosen


def test_training_images_of_the_test_set_are_left_out(tmp_path):
    class_folders(tmp_path / "in" / "train", 3)
    class_folders(tmp_path / "in" / "test", 1, first_seed=100)
    write_image(tmp_path / "in" / "train" / "dog" / "copy.bmp", pixels(101))
    found = write_folder(tmp_path / "out", tmp_path / "in", "pets")
    assert found.left_out == ["base/dog/copy.bmp"]
    assert "dog/copy.bmp" not in tree(tmp_path / "out" / "train" / "base")


def test_sizes_and_channels_are_looked_at(tmp_path):
    source = class_folders(tmp_path / "in", 5)
    assert write_folder(tmp_path / "a", source, "x").image_size == 8
    write_image(source / "cat" / "color.png", pixels(0, 30, 40, 3))
    write_image(source / "cat" / "large.png", pixels(0, 500, 400))
    found = write_folder(tmp_path / "b", source, "x")
    assert (found.channels, found.image_size) == (3, 8)  # 8 is the middle one of the shorter sides
    assert write_folder(tmp_path / "c", source, "x", image_size=16).image_size == 16
    for index in range(40):
        write_image(source / "dog" / f"large{index}.png", pixels(index, 300, 300))
    assert write_folder(tmp_path / "d", source, "x").image_size == 224
    summary = prepare_drop(
        tmp_path / "d" / "train" / "base", tmp_path / "p", spec=ImageSpec(tuple(CLASSES), 224, 3, "crop")
    )
    assert summary["images"] > 40


def test_one_size_is_kept_unless_it_is_more_than_a_configuration_takes(tmp_path):
    for size, expected in ((2048, 2048), (2100, 224)):
        headers = [("RGB", (size, size))] * 3
        assert folders._common_spec(CLASSES, headers, None, "crop").size == expected


def test_what_is_not_used_is_named(tmp_path):
    source = tmp_path / "in"
    class_folders(source / "train", 2)
    class_folders(source / "test", 1, first_seed=100)
    class_folders(source / "val", 2, first_seed=200)
    for name in ("README.md", ".DS_Store", "train/labels.txt", "test/cat/a.xml", "train/__pycache__/a.pyc"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    found = write_folder(tmp_path / "out", source, "x")
    assert sorted(found.ignored) == ["README.md", "test/cat/a.xml", "train/labels.txt"]
    assert found.told == [
        f"not used: val/ (6 images): `crt ingest {source / 'val'} --drop NAME` adds it to the training "
        "images",
        "test set: test/ (3 images)",
    ]
    (source / "train" / "dog" / "notes.txt").write_text("x")
    again = write_folder(tmp_path / "again", source / "train", "x")
    assert sorted(again.ignored) == ["dog/notes.txt", "labels.txt"]


def test_folders_without_an_image_are_no_classes(tmp_path):
    source = class_folders(tmp_path / "in", 3)
    (source / "docs").mkdir()
    (source / "docs" / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"in has folders without a single image \(docs\): put images there"):
        write_folder(tmp_path / "out", source, "x")


def test_a_class_of_pictures_that_are_not_read_is_not_dropped(tmp_path):
    source = class_folders(tmp_path / "in", 3)
    for file in (source / "owl").iterdir():
        file.rename(file.with_suffix(".nef"))
        file.with_suffix(".nef").write_bytes(b"MM\0*" + bytes(50))
    with pytest.raises(UserError, match=r"3 image\(s\) that cannot be used: .*owl/000.nef: .nef is not read"):
        write_folder(tmp_path / "out", source, "x")


def test_numbered_classes_are_in_numeric_order(tmp_path):
    for number in range(12):
        for index in range(2):
            write_image(tmp_path / "in" / str(number) / f"{index}.png", pixels(2 * number + index))
    found = write_folder(tmp_path / "out", tmp_path / "in", "x")
    assert found.classes == [str(number) for number in range(12)]


def test_accents_in_one_or_two_characters_are_one_class(tmp_path):
    for part, cafe, seed in (("train", "cafe\u0301", 0), ("test", "caf\u00e9", 10)):
        for place, name in enumerate((cafe, "dog")):
            write_image(tmp_path / "in" / part / name / "a.png", pixels(seed + place))
    found = write_folder(tmp_path / "out", tmp_path / "in", "x")
    assert found.classes == ["caf\u00e9", "dog"]
    for part in ("train/base", "test"):
        summary = prepare_drop(
            tmp_path / "out" / part, tmp_path / "p" / part, spec=ImageSpec(tuple(found.classes), 8, 1)
        )
        assert summary["classes"] == {"caf\u00e9": 1, "dog": 1}


@pytest.mark.parametrize("name", [" cat", "a\u2028b", "two\nlines"])
def test_folders_that_cannot_be_a_line_of_classes_txt(tmp_path, name):
    source = class_folders(tmp_path / "in", 2)
    (source / "owl").rename(source / name)
    with pytest.raises(UserError, match="cannot be a folder and a line of text"):
        write_folder(tmp_path / "out", source, "x")


def test_unreadable_and_unusable_images(tmp_path):
    source = class_folders(tmp_path / "in", 5)
    (source / "cat" / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"1 image\(s\) that cannot be used: .*cat/text.png: not an image"):
        write_folder(tmp_path / "out", source, "x")
    found = write_folder(tmp_path / "out2", source, "x", skip_unreadable=True)
    assert found.skipped == [f"{source}/cat/text.png: not an image"]
    assert "cat/text.png" not in tree(tmp_path / "out2")
    write_image(source / "dog" / "alpha.png", pixels(0, 8, 8, 4))
    with pytest.raises(UserError, match=r"dog/alpha.png: transparent pixels"):
        write_folder(tmp_path / "out3", source, "x", skip_unreadable=True)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "has 0 class folder"),
        (["cat"], "has 1 class folder"),
        (["test/cat", "test/dog"], r"has test/ \(2 images\), and no folder train/ beside: put the training"),
        (["train/cat", "train/fish", "test/cat", "test/dog"], r"lacks \(fish\)"),
    ],
)
def test_other_layouts_are_refused(tmp_path, parts, message):
    (tmp_path / "in").mkdir()
    for index, part in enumerate(parts):
        write_image(tmp_path / "in" / part / "a.png", pixels(index))
    with pytest.raises(UserError, match=message):
        write_folder(tmp_path / "out", tmp_path / "in", "x")


def test_archives_and_missing_folders_are_refused(tmp_path):
    class_folders(tmp_path / "in" / "test", 1)
    (tmp_path / "in" / "train" / "a" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "train" / "b").mkdir()
    write_image(tmp_path / "in" / "train" / "a" / "cat" / "a.png", pixels(50))
    np.savez(tmp_path / "in" / "train" / "b" / "b.npz", images=np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(
        UserError, match=r"in mixes .npz archives \(train/b/b.npz\) and image files \(test/cat/"
    ):
        write_folder(tmp_path / "out", tmp_path / "in", "x")
    with pytest.raises(UserError, match="nowhere is missing"):
        write_folder(tmp_path / "out", tmp_path / "nowhere", "x")


def test_near_copies_of_test_images_are_listed_dropped_or_refused(tmp_path):
    def image(seed):
        colors = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
        return Image.fromarray(colors).resize((64, 64), Image.Resampling.BICUBIC)

    for seed, place in enumerate(("train/cat/a", "train/dog/b", "test/cat/c", "test/dog/d")):
        path = tmp_path / "in" / f"{place}.png"
        path.parent.mkdir(parents=True)
        image(seed).save(path)
    image(2).save(tmp_path / "in/train/cat/copy.jpg", quality=92)
    for setting, kept in (
        ("list", {"cat/a.png", "cat/copy.jpg", "dog/b.png"}),
        ("drop", {"cat/a.png", "dog/b.png"}),
    ):
        found = write_folder(tmp_path / setting, tmp_path / "in", "pets", near_copies=setting)
        assert found.near == ["base/cat/copy.jpg (test image cat/c.png)"]
        assert set(tree(tmp_path / setting / "train" / "base")) == kept
        said = "\n".join(told.of_data_set(found, near_left_out=setting == "drop"))
        done = {"list": "kept (data.near_copies=drop leaves them out)", "drop": "left out of training"}[
            setting
        ]
        assert f"near copies of test images, {done}: 1: base/cat/copy.jpg (test image cat/c.png)" in said
    with pytest.raises(UserError, match=r"1 training image\(s\) look like a test image: base/cat/copy.jpg"):
        write_folder(tmp_path / "refused", tmp_path / "in", "pets", near_copies="refuse")
