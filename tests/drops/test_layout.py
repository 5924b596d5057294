import os

import numpy as np
import pytest
from raw_drops import CLASSES, class_folders, pixels, write_image

from crt.drops.layout import by_suffix, check_class_names, check_data_dir, read_classes, read_drop, walk_files
from crt.errors import UserError


def test_class_folders_in_order_of_class_then_name(tmp_path):
    for name in ("owl/b.png", "owl/a.jpg", "cat/z.PNG", "cat/deep/er/a.png", "dog/1.jpeg"):
        write_image(tmp_path / name, pixels(0))
    drop = read_drop(tmp_path, CLASSES)
    assert [(file.name, file.label) for file in drop.files] == [
        ("cat/deep/er/a.png", 0),
        ("cat/z.PNG", 0),
        ("dog/1.jpeg", 1),
        ("owl/a.jpg", 2),
        ("owl/b.png", 2),
    ]
    assert drop.count == 5
    # The order follows classes.txt, not the alphabet.
    assert [file.label for file in read_drop(tmp_path, CLASSES[::-1]).files] == [0, 0, 1, 2, 2]


def test_other_files_are_counted_and_junk_is_not(tmp_path):
    class_folders(tmp_path, 1)
    for name in ("README.md", "cat/notes.txt", ".DS_Store", "cat/._000.png", "dog/001.png.partial"):
        (tmp_path / name).write_text("x")
    drop = read_drop(tmp_path, CLASSES)
    assert drop.count == 3
    assert drop.ignored == ["README.md", "cat/notes.txt"]


def test_flat_images_are_unlabeled(tmp_path):
    for name in ("b.png", "a.png"):
        write_image(tmp_path / name, pixels(0))
    assert [(file.name, file.label) for file in read_drop(tmp_path, CLASSES).files] == [
        ("a.png", -1),
        ("b.png", -1),
    ]


def test_labels_csv(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        write_image(tmp_path / name, pixels(0))
    (tmp_path / "labels.csv").write_text("file,label\nb.png,dog\na.png,owl\nc.png,\n")
    found = [(file.name, file.label) for file in read_drop(tmp_path, CLASSES).files]
    assert found == [("c.png", -1), ("d.png", -1), ("b.png", 1), ("a.png", 2)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,label\na.png,cat\n", "columns file,label"),
        ("file,label\nx.png,cat\n", "line 2: 'x.png' is no image"),
        ("file,label\na.png,cat\na.png,dog\n", "line 3: 'a.png' has a second label"),
        ("file,label\na.png,fish\n", "does not know 'fish'"),
        ("file,label\na.png,\xff\n", "UTF-8"),
        ("", "labels.csv is empty: give a table whose first line names its columns"),
    ],
)
def test_bad_labels_csv(tmp_path, table, message):
    write_image(tmp_path / "a.png", pixels(0))
    (tmp_path / "labels.csv").write_bytes(table.encode("latin1"))
    with pytest.raises(UserError, match=message):
        read_drop(tmp_path, CLASSES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", "\ufefffile;label\r\na.png;cat\r\n;\r\nb.png;\r\n"),
        ("Labels.CSV", "File, Label ,\n a.png , CAT,\n\nb.png,,\n"),
        ("labels.csv", "sep=;\nlabel;file\ncat;a.png\n"),
    ],
)
def test_labels_csv_as_spreadsheets_write_it(tmp_path, name, content):
    for image in ("a.png", "b.png"):
        write_image(tmp_path / image, pixels(0))
    (tmp_path / name).write_bytes(content.encode())
    drop = read_drop(tmp_path, CLASSES)
    assert {file.name: file.label for file in drop.files} == {"a.png": 0, "b.png": -1}
    assert drop.ignored == []


def test_two_label_tables_that_differ_in_case(tmp_path):
    write_image(tmp_path / "a.png", pixels(0))
    for name in ("labels.csv", "LABELS.csv"):
        (tmp_path / name).write_text("file,label\na.png,cat\n")
    with pytest.raises(UserError, match=r"LABELS.csv and labels.csv, which differ in case alone: remove one"):
        read_drop(tmp_path, CLASSES)


def test_class_folders_in_another_case(tmp_path):
    write_image(tmp_path / "DOG" / "a.png", pixels(0))
    write_image(tmp_path / "Cat" / "a.png", pixels(1))
    assert [(file.name, file.label) for file in read_drop(tmp_path, CLASSES).files] == [
        ("Cat/a.png", 0),
        ("DOG/a.png", 1),
    ]
    with pytest.raises(UserError, match=r"does not know \(Cat\)"):
        read_drop(tmp_path, ["cat", "CAT", "DOG"])


def test_labels_csv_without_images(tmp_path):
    class_folders(tmp_path, 1)
    (tmp_path / "labels.csv").write_text("file,label\n")
    with pytest.raises(UserError, match=r"labels.csv labels images that lie beside it"):
        read_drop(tmp_path, CLASSES)


def test_archives(tmp_path):
    for name, count in (("b", 2), ("a", 3)):
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((count, 8, 8), np.uint8))
    drop = read_drop(tmp_path, CLASSES)
    assert [(archive.path.name, archive.count) for archive in drop.archives] == [("a.npz", 3), ("b.npz", 2)]
    assert drop.count == 5


def test_unknown_class_folders_are_named(tmp_path):
    class_folders(tmp_path, 1)
    for index in range(12):
        (tmp_path / f"fish{index:02}").mkdir()
    with pytest.raises(UserError, match=r"classes.txt does not know \(fish00, .*, fish09 and 2 more\)"):
        read_drop(tmp_path, CLASSES)


@pytest.mark.parametrize("extra", ["a.png", "a.npz"])
def test_mixed_layouts_are_refused(tmp_path, extra):
    class_folders(tmp_path, 1)
    if extra == "a.png":
        write_image(tmp_path / extra, pixels(0))
    else:
        np.savez(tmp_path / extra, images=np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(UserError, match=f"mixes class folders .* and .*{extra}"):
        read_drop(tmp_path, CLASSES)


def test_archive_in_a_class_folder_is_not_overlooked(tmp_path):
    class_folders(tmp_path, 1)
    np.savez(tmp_path / "cat" / "a.npz", images=np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"a.npz lies in a class folder"):
        read_drop(tmp_path, CLASSES)


@pytest.mark.parametrize("content", [[], ["README.md"], [".hidden.png"]])
def test_empty_drop(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("x")
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        read_drop(tmp_path, CLASSES)


def test_missing_drop(tmp_path):
    with pytest.raises(UserError, match="nowhere is missing"):
        read_drop(tmp_path / "nowhere", CLASSES)


def test_suffixes_in_any_case_and_pictures_that_are_not_read_are_images(tmp_path):
    for name in ("a.JFIF", "b.jpe", "c.HEIC", "d.nef"):
        (tmp_path / name).write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    drop = read_drop(tmp_path, CLASSES)
    assert [file.name for file in drop.files] == ["a.JFIF", "b.jpe", "c.HEIC", "d.nef"]
    assert drop.ignored == ["notes.txt"]


def test_other_files_are_counted_by_suffix():
    names = ["a.txt", "b/c.TXT", "README", "x.tar.gz", ".d/README"]
    assert by_suffix(names) == {".gz": 1, ".txt": 2, "README": 2}


@pytest.mark.parametrize(
    "name",
    ["__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", ".git", "THUMBS.DB"],
)
def test_what_other_programs_leave_behind_is_no_class(tmp_path, name):
    class_folders(tmp_path, 1)
    write_image(tmp_path / name / "cat" / "000.png", pixels(0))
    write_image(tmp_path / "cat" / name / "000.png", pixels(0))
    assert read_drop(tmp_path, CLASSES).count == 3


@pytest.mark.parametrize("place", ["", "cat", "cat/caf\udce9"])
def test_names_that_are_no_text_are_named(tmp_path, place):
    class_folders(tmp_path, 1)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "caf\udce9.png").write_text("x")  # Latin-1, as unpacking leaves it of an old archive
    with pytest.raises(UserError, match=r"caf\\xe9.*: the name is not UTF-8, rename it") as error:
        read_drop(tmp_path, CLASSES)
    str(error.value).encode()
    with pytest.raises(UserError, match=r"caf\\xe9.*: the name is not UTF-8"):
        walk_files(tmp_path)


def test_accents_in_one_or_two_characters_are_the_same(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for classes, folder in ((["dog", composed], decomposed), (["dog", decomposed], composed)):
        drop = tmp_path / folder
        write_image(drop / folder / "a.png", pixels(0))
        assert [(file.name, file.label) for file in read_drop(drop, classes).files] == [
            (f"{folder}/a.png", 1)
        ]
    flat = tmp_path / "flat"
    write_image(flat / f"{decomposed}.png", pixels(0))
    (flat / "labels.csv").write_text(f"file,label\n{composed}.png,{decomposed}\n", encoding="utf-8")
    assert [file.label for file in read_drop(flat, ["dog", composed]).files] == [1]
    with pytest.raises(UserError, match="twice"):
        check_class_names([composed, decomposed], "the data")


def test_class_folders_may_be_links(tmp_path):
    source = class_folders(tmp_path / "all", 2)
    drop = tmp_path / "some"
    drop.mkdir()
    for name in CLASSES[:2]:
        os.symlink(source / name, drop / name)
    assert [file.name for file in read_drop(drop, CLASSES).files] == [
        "cat/000.png", "cat/001.png", "dog/000.png", "dog/001.png",
    ]  # fmt: skip
    assert [path.relative_to(drop).as_posix() for path in walk_files(drop)] == [
        file.name for file in read_drop(drop, CLASSES).files
    ]
    os.symlink(drop, drop / "owl")  # leads back
    with pytest.raises(UserError, match="is a link to a folder"):
        walk_files(drop)


def test_links_to_files_are_followed_and_links_to_folders_refused(tmp_path):
    # DVC's cache.type symlink makes every file of data/ a link.
    outside = write_image(tmp_path / "cache.png", pixels(0))
    drop = tmp_path / "drop"
    (drop / "cat").mkdir(parents=True)
    os.symlink(outside, drop / "cat" / "a.png")
    assert read_drop(drop, CLASSES).count == 1
    os.symlink(tmp_path, drop / "cat" / "loop")
    with pytest.raises(UserError, match="loop is a link to a folder"):
        read_drop(drop, CLASSES)


def test_read_classes(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog \n\nüber owl\n", encoding="utf-8")
    assert read_classes(tmp_path, 3) == ["cat", "dog", "über owl"]
    with pytest.raises(UserError, match=r"names 3 classes but num_classes is 4"):
        read_classes(tmp_path, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\na\n", "'a' twice"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"a\nb/c\n", "'b/c', which cannot be a folder"),
        (b"a\n__pycache__\n", "'__pycache__', which cannot be a folder"),
        ("e\u0301\n\u00e9\n".encode(), "'\u00e9' twice"),
    ],
)
def test_bad_classes(tmp_path, content, message):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_classes(tmp_path, 2)


def test_missing_classes(tmp_path):
    with pytest.raises(UserError, match=r"classes.txt is missing: write one class name per line there"):
        read_classes(tmp_path, 2)


def test_check_data_dir(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    check_data_dir(tmp_path, ["a"])
    with pytest.raises(UserError, match=r"train/b is missing: the images of the drop 'b' belong there"):
        check_data_dir(tmp_path, ["a", "b"])
