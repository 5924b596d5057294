import json

import numpy as np
import pytest
from raw_drops import CLASSES, GREY8, class_folders

from crt.data.prepare import prepare_drop
from crt.data.store import open_store, read_hashes
from crt.errors import UserError


@pytest.fixture
def prepared(tmp_path):
    source = class_folders(tmp_path / "raw", per_class=2)
    prepare_drop(source, tmp_path / "out", classes=CLASSES, fmt=GREY8)
    return tmp_path / "out"


def test_images_are_mapped_not_read(prepared):
    store = open_store(prepared)
    assert isinstance(store.images, np.memmap)
    assert not store.images.flags.writeable
    assert len(store) == 6
    assert (store.classes, store.image_size, store.channels) == (CLASSES, 8, 1)
    assert store.names[0] == "cat/000.png"


def test_hashes_name_their_images(prepared):
    hashes = read_hashes(prepared / "index.parquet")
    assert list(hashes.values()) == open_store(prepared).names


@pytest.mark.parametrize("name", ["meta.json", "images.npy", "labels.npy"])
def test_missing_file(prepared, name):
    (prepared / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing: run `dvc repro`"):
        open_store(prepared)


@pytest.mark.parametrize("name", ["meta.json", "images.npy", "labels.npy"])
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


def test_pickled_labels_are_refused(prepared):
    np.save(prepared / "labels.npy", np.array([None] * 6), allow_pickle=True)
    with pytest.raises(UserError, match="is damaged"):
        open_store(prepared)


def test_other_format_version(prepared):
    meta = json.loads((prepared / "meta.json").read_text())
    (prepared / "meta.json").write_text(json.dumps({**meta, "format": 2}))
    with pytest.raises(UserError, match="has format 2, this version reads 1"):
        open_store(prepared)


def test_missing_index(tmp_path):
    with pytest.raises(UserError, match=r"index.parquet cannot be read .*dvc repro prepare_test"):
        read_hashes(tmp_path / "index.parquet")
    (tmp_path / "index.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"index.parquet cannot be read"):
        read_hashes(tmp_path / "index.parquet")
