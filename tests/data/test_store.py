import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared_drops import store_of, write_prepared
from raw_drops import GRAY8, class_folders, pixels

from crt.data.store import Shards, open_store, open_validation
from crt.drops import prepare
from crt.drops.images import pixel_hash
from crt.drops.prepare import Checks, prepare_drop
from crt.errors import DamagedFileError, MissingFileError, UserError


@pytest.fixture
def prepared(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=2)
    prepare_drop(source, tmp_path / "out", spec=GRAY8)
    return tmp_path / "out"


def test_images_are_mapped_not_read(prepared):
    store = open_store(prepared)
    assert isinstance(store.images, np.memmap)
    assert not store.images.flags.writeable
    assert len(store) == 6
    assert store.spec == GRAY8
    assert store.names[0] == "cat/000.png"
    assert store.validation.tolist() == [False] * 6


def test_hashes_are_those_of_the_images(prepared):
    store = open_store(prepared)
    assert store.hashes == [pixel_hash(pixels) for pixels in store.images]


@pytest.mark.parametrize("name", ["meta.json", "images.npy", "labels.npy", "index.parquet"])
def test_missing_file(prepared, name):
    (prepared / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing: prepare the drop again"):
        open_store(prepared)


@pytest.mark.parametrize("name", ["meta.json", "images.npy", "labels.npy", "index.parquet"])
@pytest.mark.parametrize("keep", [0, 40, -1])
def test_truncated_file(prepared, name, keep):
    content = (prepared / name).read_bytes()
    (prepared / name).write_bytes(content[: keep if keep >= 0 else len(content) - 9])
    with pytest.raises(UserError, match="is damaged"):
        open_store(prepared)


def test_arrays_that_do_not_belong_together(prepared):
    np.save(prepared / "labels.npy", np.zeros(5, np.int64))
    with pytest.raises(UserError, match=r"6 images of meta.json"):
        open_store(prepared)


def test_an_index_of_other_images(prepared):
    index = pq.read_table(prepared / "index.parquet")
    pq.write_table(index.slice(1), prepared / "index.parquet")
    with pytest.raises(DamagedFileError, match=r"its index has 5 of 6 images"):
        open_store(prepared)


def test_an_index_older_than_validation_images_sets_none_aside(prepared):
    index = pq.read_table(prepared / "index.parquet").drop_columns(["validation"])
    pq.write_table(index, prepared / "index.parquet")
    assert open_store(prepared).validation.tolist() == [False] * 6


def test_an_index_without_a_column(prepared):
    index = pq.read_table(prepared / "index.parquet").drop_columns(["name"])
    pq.write_table(index, prepared / "index.parquet")
    with pytest.raises(DamagedFileError, match=r"index.parquet is damaged .*no column name"):
        open_store(prepared)


@pytest.mark.parametrize("label", [-2, 99])
def test_labels_of_no_class(prepared, label):
    labels = np.load(prepared / "labels.npy")
    labels[1] = label
    np.save(prepared / "labels.npy", labels)
    with pytest.raises(UserError, match="has labels of no class"):
        open_store(prepared)


def test_pickled_labels_are_refused(prepared):
    np.save(prepared / "labels.npy", np.array([None] * 6), allow_pickle=True)
    with pytest.raises(UserError, match="is damaged"):
        open_store(prepared)


def test_other_format_version(prepared):
    meta = json.loads((prepared / "meta.json").read_text())
    (prepared / "meta.json").write_text(json.dumps({**meta, "format": 1}))
    with pytest.raises(UserError, match="has format 1, this version reads 2"):
        open_store(prepared)


def test_missing_index(tmp_path):
    store = store_of(np.zeros((1, 8, 8, 1), np.uint8), path=tmp_path)
    with pytest.raises(MissingFileError, match=r"index.parquet is missing: prepare the drop again"):
        _ = store.hashes
    (tmp_path / "index.parquet").write_text("no table")
    with pytest.raises(DamagedFileError, match=r"index.parquet is damaged .*: prepare the drop again"):
        _ = store.hashes


def drop_of(folder, count, first_seed, validation, labels=None):
    images = np.stack([pixels(first_seed + k, 8, 8, 1) for k in range(count)])
    return write_prepared(folder, images, labels or [k % 3 for k in range(count)], GRAY8, validation)


def test_what_several_drops_set_aside_is_one_store(tmp_path):
    one = open_store(drop_of(tmp_path / "one", 5, 0, [1, 4]))
    drop_of(tmp_path / "three", 2, 20, [])
    two = open_store(drop_of(tmp_path / "two", 4, 10, [0, 3]))
    assert np.flatnonzero(one.validation).tolist() == [1, 4]
    split = open_validation(tmp_path)
    assert split.names == ["one/1.png", "one/4.png", "two/0.png", "two/3.png"]
    assert split.labels.tolist() == [1, 1, 0, 0]
    assert split.spec == GRAY8
    assert split.validation.all()
    np.testing.assert_array_equal(
        np.asarray(split.images), np.concatenate([one.images[[1, 4]], two.images[[0, 3]]])
    )
    np.testing.assert_array_equal(split.images[2], two.images[0])


def test_the_split_has_a_fingerprint_of_its_images_alone(tmp_path):
    drop_of(tmp_path / "one", 5, 0, [1, 4])
    first = open_validation(tmp_path).fingerprint
    drop_of(tmp_path / "two", 3, 10, [])
    assert open_validation(tmp_path).fingerprint == first
    seen = {first}
    for changes in (
        {"validation": [1]},
        {"first_seed": 30},
        {"labels": [0, 2, 2, 0, 1]},
    ):
        drop_of(tmp_path / "one", **{"count": 5, "first_seed": 0, "validation": [1, 4], **changes})
        seen.add(open_validation(tmp_path).fingerprint)
    assert len(seen) == 4


def test_no_split(tmp_path):
    with pytest.raises(MissingFileError, match="holds no prepared drop"):
        open_validation(tmp_path)
    drop_of(tmp_path / "one", 5, 0, [])
    with pytest.raises(
        UserError, match=r"no image in .* is set aside: prepare the drops with a validation share"
    ):
        open_validation(tmp_path)


def test_drops_of_two_kinds_make_no_split(tmp_path):
    drop_of(tmp_path / "one", 2, 0, [0])
    write_prepared(tmp_path / "two", np.zeros((2, 9, 9, 1), np.uint8), [0, 1], validation=[0])
    with pytest.raises(UserError, match=r"one and .*two differ in image size \(8 and 9\)"):
        open_validation(tmp_path)


def files_of(folder):
    return {file.name: len(np.load(file)) for file in folder.glob("images*.npy")}


def test_a_large_drop_is_written_in_several_files(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_SHARD_BYTES", 4 * 8 * 8)
    prepare_drop(tmp_path / "raw", tmp_path / "sharded", spec=GRAY8)
    assert files_of(tmp_path / "sharded") == {"images.npy": 4, "images-0001.npy": 2}
    whole, sharded = open_store(prepared), open_store(tmp_path / "sharded")
    assert (sharded.fingerprint, sharded.names) == (whole.fingerprint, whole.names)
    np.testing.assert_array_equal(np.asarray(sharded.images), whole.images)
    (tmp_path / "sharded" / "images-0001.npy").unlink()
    with pytest.raises(UserError, match=r"images-0001.npy is missing: prepare the drop again"):
        open_store(tmp_path / "sharded")


def test_a_drop_that_fills_its_files_has_no_empty_one(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_SHARD_BYTES", 3 * 8 * 8)
    prepare_drop(tmp_path / "raw", tmp_path / "sharded", spec=GRAY8)
    assert files_of(tmp_path / "sharded") == {"images.npy": 3, "images-0001.npy": 3}
    np.testing.assert_array_equal(
        np.asarray(open_store(tmp_path / "sharded").images), open_store(prepared).images
    )


def test_unreadable_images_shorten_the_last_file(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_SHARD_BYTES", 2 * 8 * 8)
    broken = sorted((tmp_path / "raw").rglob("*.png"))
    for file in (broken[0], broken[3]):
        file.write_bytes(b"no image")
    prepare_drop(tmp_path / "raw", tmp_path / "sharded", spec=GRAY8, checks=Checks(skip_unreadable=True))
    store = open_store(tmp_path / "sharded")
    np.testing.assert_array_equal(np.asarray(store.images), open_store(prepared).images[[1, 2, 4, 5]])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_shards_are_indexed_like_one_array(counts, data):
    parts = [np.random.default_rng(k).integers(0, 256, (n, 2, 2, 1), np.uint8) for k, n in enumerate(counts)]
    whole, shards = np.concatenate(parts), Shards([Shards(parts[:1]), *parts[1:]])
    assert (shards.shape, shards.nbytes, len(shards)) == (whole.shape, whole.nbytes, len(whole))
    numbers = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9))
    np.testing.assert_array_equal(shards[np.array(numbers, int)], whole[np.array(numbers, int)])
    cut = data.draw(st.slices(len(whole)))
    np.testing.assert_array_equal(shards[cut], whole[cut])
    for number in numbers:
        np.testing.assert_array_equal(shards[number], whole[number])
    for wrong in (-1, len(whole), np.array([0, len(whole)])):
        with pytest.raises(IndexError):
            shards[wrong]
    chosen = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=5)), int)
    some = Shards([shards], chosen)
    assert (some.shape, some.nbytes) == (whole[chosen].shape, whole[chosen].nbytes)
    for images in (some, Shards([some, *parts])):
        expected = np.concatenate([whole[chosen], whole])[: len(images)]
        np.testing.assert_array_equal(np.asarray(images), expected)
        np.testing.assert_array_equal(images[::-1], expected[::-1])
