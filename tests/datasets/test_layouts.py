"""Layouts in which image sets are found, read as sets (`write_folder`) and as deliveries (`write_drop`)."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_drops import pixels, write_image

from crt.datasets.deliveries import write_drop
from crt.datasets.folders import write_folder
from crt.datasets.parquet import unpack_parquet
from crt.drops.layout import read_drop
from crt.errors import UserError

LABELS = {"a": "cat", "b": "dog", "c": "cat", "d": "dog", "e": "cat", "f": "dog"}


def images(folder, names=LABELS, suffix=".png"):
    for name in names:
        seed = int.from_bytes(name.encode()[-3:], "big")
        write_image(folder / f"{name}{suffix}", pixels(seed, 8, 8, 3), compress_level=0)
    return folder


def written(source, tmp_path, **options):
    """How many images of each class there are in each part, and all else that is told."""
    found = write_folder(tmp_path / "out", source, "x", **options)
    counts = {part: {k: v for k, v in count.items() if v} for part, count in found.counts.items()}
    return counts, found


def delivered(source, tmp_path, classes=("cat", "dog")):
    """The label of each image of a delivery, by its pixels' first value."""
    out = tmp_path / "drop"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    told = write_drop(source, out, classes)
    drop = read_drop(out, classes)
    return {file.path.name.rpartition("__")[2]: file.label for file in drop.files}, told, drop


EXPECTED = {"a.png": 0, "b.png": 1, "c.png": 0, "d.png": 1, "e.png": 0, "f.png": 1}
TABLES = {
    "labels.csv": "file,label\n{rows}",
    "Etiketten.csv": "\ufeffDatei;Klasse\r\n{rows}",
    "annotations.tsv": "image_id\tlabel\twidth\n{rows}",
    "metadata.csv": "file_name,label,text\n{rows}",
    "list.txt": "# name class\n{rows}",
}


def table(name, folder=""):
    separator = {"Etiketten.csv": ";", "annotations.tsv": "\t", "list.txt": " "}.get(name, ",")
    more = {"annotations.tsv": ["8"], "metadata.csv": ["a picture, or so"]}.get(name, [])
    suffix = "" if name in ("annotations.tsv", "list.txt") else ".png"
    rows = [
        separator.join([f"{folder}{image}{suffix}", label, *(f'"{cell}"' for cell in more)])
        for image, label in LABELS.items()
    ]
    return TABLES[name].format(rows="\n".join(rows) + "\n")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("folder", ["", "images"])
def test_a_table_of_any_name_labels_the_images_beside_it_or_below(tmp_path, name, folder):
    source = images(tmp_path / "in" / folder).parents[0] if folder else images(tmp_path / "in")
    (source / name).write_text(table(name, "images/" if folder else ""), encoding="utf-8")
    counts, found = written(source, tmp_path)
    assert {part: sum(count.values()) for part, count in counts.items()} == {"base": 4, "test": 2}
    assert found.classes == ["cat", "dog"]
    assert found.ignored == []
    assert any(line.startswith(f"labels: {name}, ") for line in found.told)
    labels, told, _ = delivered(source, tmp_path)
    assert labels == EXPECTED
    assert bool(told) == (name != "labels.csv" or folder != "")  # our own layout needs no word


def test_images_that_a_list_does_not_name_are_unlabeled(tmp_path):
    source = images(tmp_path / "in")
    (source / "some.csv").write_text("file,label\na.png,cat\nb.png,dog\nc.png,cat\nd.png,dog\n")
    labels, _, drop = delivered(source, tmp_path)
    assert labels == EXPECTED | {"e.png": -1, "f.png": -1}
    assert drop.ignored == []
    counts, found = written(source, tmp_path)
    assert found.drops == ["base", "unlabeled"]
    assert counts["unlabeled"] == {"": 2}
    assert counts["test"] == {"cat": 1, "dog": 1}


def test_metadata_of_hugging_face_in_each_part(tmp_path):
    for part, names in (("train", "abcd"), ("test", "ef")):
        folder = images(tmp_path / "in" / part, names)
        lines = [
            json.dumps({"file_name": f"{name}.png", "label": LABELS[name], "text": "x"}) for name in names
        ]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    counts, _ = written(tmp_path / "in", tmp_path)
    assert counts == {"base": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}


def test_metadata_without_labels_leaves_them_to_the_folders(tmp_path):
    for name, label in LABELS.items():
        images(tmp_path / "in" / label, [name])
    rows = "".join(f"{label}/{name}.png,a picture of {name}\n" for name, label in LABELS.items())
    (tmp_path / "in" / "metadata.csv").write_text(f"file_name,text\n{rows}")
    counts, found = written(tmp_path / "in", tmp_path)
    assert counts == {"base": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}
    assert found.ignored == ["metadata.csv"]


def test_oxfords_lists(tmp_path):
    names = [f"{breed}_{number}" for breed in ("Great_Dane", "pug") for number in range(1, 7)]
    images(tmp_path / "in" / "images", names, ".jpg.png")
    numbers = {"Great_Dane": 1, "pug": 2}
    lists = {"trainval": [1, 2, 3, 4], "test": [5], "list": [1, 2, 3, 4, 5]}
    for stem, chosen in lists.items():
        rows = [f"{breed}_{n} {label} {label} 1" for breed, label in numbers.items() for n in chosen]
        path = tmp_path / "in" / "annotations" / f"{stem}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(rows))
    for path in (tmp_path / "in" / "images").iterdir():
        path.rename(path.with_name(path.name.replace(".jpg.png", ".png")))
    counts, found = written(tmp_path / "in", tmp_path)
    assert counts == {"base": {"Great_Dane": 4, "pug": 4}, "test": {"Great_Dane": 1, "pug": 1}}
    assert found.ignored == ["annotations/list.txt", "images/Great_Dane_6.png", "images/pug_6.png"]
    with pytest.raises(UserError, match=r"lists of several parts \(test.txt, trainval.txt\)"):
        delivered(tmp_path / "in", tmp_path)


def test_lists_of_names_alone_leave_labels_to_the_folders(tmp_path):
    for name, label in LABELS.items():
        images(tmp_path / "in" / "images" / label, [name])
    for stem, names in (("train", "abcd"), ("test", "ef")):
        path = tmp_path / "in" / "meta" / f"{stem}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{LABELS[name]}/{name}\n" for name in names))
    counts, _ = written(tmp_path / "in", tmp_path)
    assert counts == {"base": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}


def test_a_column_of_parts_and_numbers_as_labels(tmp_path):
    source = images(tmp_path / "in" / "images").parents[0]
    rows = [
        f"images/{name}.png,{['cat', 'dog'].index(label)},{'test' if name in 'ef' else 'Train'}"
        for name, label in LABELS.items()
    ]
    (source / "all.csv").write_text("path,label,split\n" + "\n".join(rows))
    (source / "classes.txt").write_text("cat\ndog\n")
    counts, _ = written(source, tmp_path)
    assert counts == {"base": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.png,cat\nx.png,dog\n", r"names 1 image\(s\) that are not there \(x.png\)"),
        ("file,label\na.png,cat\na.png,dog\n", r"line 3: 'a.png' has a second label"),
        ("file,one,two\na.png,cat,1\n", "has the columns file, one, two, and none is called label"),
        (b"file,label\na.png,caf\xe9\n", "no text in UTF-8"),
    ],
)
def test_lists_that_cannot_be_followed(tmp_path, content, message):
    source = images(tmp_path / "in", "ab")
    (source / "list.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (written, delivered):
        with pytest.raises(UserError, match=f"list.csv.*{message}"):
            read(source, tmp_path)


def test_two_lists_that_differ(tmp_path):
    source = images(tmp_path / "in", "ab")
    (source / "one.csv").write_text("file,label\na.png,cat\nb.png,dog\n")
    (source / "two.csv").write_text("file,label\na.png,dog\n")
    with pytest.raises(UserError, match=r"two.csv labels a.png dog, and another list cat: keep one"):
        written(source, tmp_path)


def test_text_files_that_are_no_lists_are_named(tmp_path):
    source = tmp_path / "in"
    for name, label in LABELS.items():
        images(source / label, [name])
    (source / "README.txt").write_text("Six pictures.\nThey are of cats and dogs, and made up.\n")
    (source / "cat" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    (source / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    _, found = written(source, tmp_path)
    assert found.ignored == ["README.txt", "bytes.txt", "cat/a.txt"]


def parquet(path, names, *, huggingface=True, struct=True):
    buffers = []
    for name in names:
        buffer = io.BytesIO()
        Image.fromarray(pixels(ord(name), 8, 8, 3)).save(buffer, "PNG")
        buffers.append(buffer.getvalue())
    content = [{"bytes": one, "path": None} for one in buffers] if struct else buffers
    labels = [["dog", "cat"].index(LABELS[name]) if huggingface else LABELS[name] for name in names]
    features = {"image": {"_type": "Image"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
    kept = pa.table({"note": ["x"] * len(names), "image": content, "label": labels})
    if huggingface:
        kept = kept.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(kept, path)
    return path


@pytest.mark.parametrize("huggingface", [True, False])
def test_parquet_with_images(tmp_path, huggingface):
    folder = tmp_path / "in" / "data"
    parquet(folder / "train-00000-of-00001.parquet", "abcd", huggingface=huggingface, struct=huggingface)
    parquet(folder / "test-00000-of-00001.parquet", "ef", huggingface=huggingface, struct=huggingface)
    counts, _found = written(tmp_path / "in", tmp_path)
    assert counts == {"base": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}
    assert not (tmp_path / "out" / ".unpacked").exists()
    one = parquet(tmp_path / "delivery.parquet", "abcdef", huggingface=huggingface)
    labels, _, drop = delivered(one, tmp_path)
    assert sorted(labels.values()) == [0, 0, 0, 1, 1, 1]
    assert drop.ignored == []
    with pytest.raises(UserError, match=r"in has test and train, parts of a data set, .*: unpack it"):
        delivered(tmp_path / "in", tmp_path)


def test_parquet_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("no table")
    with pytest.raises(UserError, match=r"a.parquet is no readable parquet file"):
        written(path, tmp_path)
    pq.write_table(pa.table({"x": [1], "label": [0]}), path)
    with pytest.raises(UserError, match=r"no column of images \(its columns: x, label\)"):
        written(path, tmp_path)
    pq.write_table(
        pa.table(
            {"image": [{"bytes": None, "path": "a.png"}], "label": [0]},
            pa.schema(
                [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
            ),
        ),
        path,
    )
    with pytest.raises(UserError, match=r"names image files that it does not hold"):
        written(path, tmp_path)


def arrays(seed, count=6):
    return np.stack([pixels(seed + k, 8, 8, 3) for k in range(count)]), np.arange(count) % 2


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_one_npz_with_both_parts(tmp_path, keys):
    (one, y1), (two, y2) = arrays(0), arrays(100, 4)
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (one, y1[:, None], two, y2[:, None]), strict=True)))
    counts, found = written(tmp_path / "a.npz", tmp_path)
    assert counts == {"base": {"0": 3, "1": 3}, "test": {"0": 2, "1": 2}}
    assert (found.image_size, found.channels, found.classes) == (8, 3, ["0", "1"])
    drop = read_drop(tmp_path / "out" / "train" / "base", found.classes)
    assert np.array_equal(np.stack(list(drop.archives[0].images())), one)
    assert drop.archives[0].labels.tolist() == y1.tolist()
    with pytest.raises(UserError, match=r"holds several parts \(train, test\)"):
        delivered(tmp_path / "a.npz", tmp_path)


def test_npz_of_a_generated_set_and_channels_first(tmp_path):
    images, labels = arrays(0, 20)
    np.savez(tmp_path / "a.npz", image=images.transpose(0, 3, 1, 2), label=labels, classes=["cat", "dog"])
    counts, _found = written(tmp_path / "a.npz", tmp_path)
    assert counts == {"base": {"cat": 8, "dog": 8}, "test": {"cat": 2, "dog": 2}}
    _, _, drop = delivered(tmp_path / "a.npz", tmp_path)
    assert np.array_equal(np.stack(list(drop.archives[0].images())), images)


def test_npz_files_of_parts_and_drops_as_this_project_keeps_them(tmp_path):
    for place, seed in (("train/2025-01", 0), ("train/2025-02", 20), ("test", 40)):
        folder = tmp_path / "in" / place
        folder.mkdir(parents=True)
        images, labels = arrays(seed)
        np.savez(folder / "a.npz", images=images, labels=labels)
    (tmp_path / "in" / "classes.txt").write_text("cat\ndog\n")
    counts, _found = written(tmp_path / "in", tmp_path)
    assert counts == {part: {"cat": 3, "dog": 3} for part in ("2025-01", "2025-02", "test")}
    shutil.rmtree(tmp_path / "in" / "test")
    with pytest.raises(UserError, match="has drops and no test set beside"):
        written(tmp_path / "in", tmp_path / "again")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((2, 8, 8), np.float32)}, r"`images` is float32 \[2, 8, 8\]"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(2)}, r"`labels` is float64 \[2\]"),
        ({"a": np.zeros(3)}, r"has no array of images \(it has a\)"),
        (
            {"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(2, int)},
            r"labels up to 0 for 1 class",
        ),
        ({"images": np.array([None])}, "no readable .npz archive of plain arrays"),
    ],
)
def test_npz_that_cannot_be_read(tmp_path, content, message):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(UserError, match=f"a.npz.*{message}"):
        written(tmp_path / "a.npz", tmp_path)


def test_folders_around_the_images_are_left_out(tmp_path):
    source = tmp_path / "in"
    for name, label in LABELS.items():
        images(source / "export 2025" / "photos" / label, [name])
    (source / "README.md").write_text("x")
    counts, found = written(source, tmp_path)
    assert sum(counts["base"].values()) == 4
    assert "the images lie in export 2025/photos/" in found.told
    assert found.ignored == ["README.md"]
    labels, told, _ = delivered(source, tmp_path)
    assert labels == EXPECTED
    assert told == ["the images lie in export 2025/photos/"]
    # A folder that is called as a class is one.
    images(tmp_path / "one" / "dog" / "2024", "ab")
    assert set(delivered(tmp_path / "one", tmp_path)[0].values()) == {1}


def test_nested_parts_as_some_archives_have_them(tmp_path):
    for part, names in (("training_set", "abcd"), ("test_set", "ef")):
        for name in names:
            images(tmp_path / "in" / part / part / LABELS[name], [name])
    counts, _ = written(tmp_path / "in", tmp_path)
    assert counts == {"base": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "in")
    assert write_folder(tmp_path / "zipped", tmp_path / archive, "x").counts["test"] == {"cat": 1, "dog": 1}


def test_a_delivery_of_a_whole_set_names_the_part_to_ingest(tmp_path):
    for part in ("train", "valid"):
        images(tmp_path / "in" / part / "cat", "a")
    with pytest.raises(
        UserError, match=r"has train and valid, parts of a data set, .*: `crt ingest .*in/train --drop"
    ):
        delivered(tmp_path / "in", tmp_path)
    assert delivered(tmp_path / "in" / "train", tmp_path)[0] == {"a.png": 0}  # as the message says
    images(tmp_path / "rail" / "train", "a")
    assert delivered(tmp_path / "rail", tmp_path, ("bus", "train"))[0] == {"a.png": 1}


def test_drops_without_a_test_set_are_no_classes(tmp_path):
    for drop in ("2024", "2025"):
        for name, label in LABELS.items():
            images(tmp_path / "in" / "train" / drop / label, [name])
    with pytest.raises(
        UserError, match=r"has folders \(2024, 2025\) with the same folders in them \(cat, dog\)"
    ):
        written(tmp_path / "in", tmp_path)


def test_long_names_and_any_script(tmp_path):
    source = tmp_path / "in"
    names = {
        "\u732b\u306e\u5199\u771f": "cat",
        "\u0441\u043e\u0431\u0430\u043a\u0430 (1)": "dog",
        "z" * 240: "cat",
    }
    for name in names:
        images(source / ("deep " * 20) / "deeper", [name])
    rows = "".join(f"{name}.png;{label}\n" for name, label in names.items())
    (source / "\u0441\u043f\u0438\u0441\u043e\u043a.csv").write_text(f"file;label\n{rows}", encoding="utf-8")
    _, _, drop = delivered(source, tmp_path)
    assert [file.label for file in drop.files] == [0, 0, 1]
    assert max(len(file.path.name.encode()) for file in drop.files) <= 220


def test_labels_never_lead_out_of_the_folder(tmp_path):
    source = images(tmp_path / "in", "ab")
    (source / "list.csv").write_text("file,label\na.png,../../x\nb.png,dog\n")
    for read in (written, delivered):
        with pytest.raises(UserError, match=r"names the class '../../x', which cannot be a folder"):
            read(source, tmp_path)
    kept = pa.table({"image": [b"x"], "label": [".."]})
    pq.write_table(kept, tmp_path / "a.parquet")
    for read in (written, delivered):
        with pytest.raises(UserError, match=r"a.parquet names the class '..', which cannot be a folder"):
            read(tmp_path / "a.parquet", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "drop", "in"]


@pytest.mark.parametrize(
    "metadata", [b"{", b"[1]", b'{"info": null}', b'{"info": {"features": {"label": null}}}']
)
def test_parquet_with_metadata_of_another_form(tmp_path, metadata):
    table = pa.table({"image": [b"any"], "label": [3]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "a.parquet")
    unpack_parquet(tmp_path / "a.parquet", tmp_path / "out")
    assert [path.parent.name for path in (tmp_path / "out").rglob("*.png")] == ["3"]
