import io
import os
import stat
import tarfile
import zipfile

import pytest
from raw_drops import CLASSES, class_folders

from crt.datasets import archives
from crt.datasets.archives import is_archive, unpack
from crt.errors import UserError

FILES = ["cat/0.png", "dog/1.png", "owl/deep/2.png"]


def make_zip(path, names, content=b"abc"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def make_tar(path, names, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return path


def unpacked(path, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    unpack(path, folder, CLASSES)
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("wrapper", ["", "delivery/", "./", "./delivery/"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_files_come_out_without_the_folder_around_them(tmp_path, make, wrapper):
    junk = ["__MACOSX/cat/._0.png", f"{wrapper}.DS_Store"]
    path = make(tmp_path / "a.bin", [wrapper + name for name in FILES] + junk)
    assert is_archive(path)
    assert unpacked(path, tmp_path) == FILES
    assert (tmp_path / "folder" / "cat" / "0.png").read_bytes() == b"abc"


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_other_files_beside_the_folder_around_all_do_not_matter(tmp_path, make):
    path = make(tmp_path / "a.bin", ["README.txt", *(f"delivery/{name}" for name in FILES)])
    assert unpacked(path, tmp_path) == sorted(["README.txt", *FILES])


@pytest.mark.parametrize("beside", ["0.png", "a.npz", "labels.csv"])
def test_a_folder_beside_data_is_no_wrapper(tmp_path, beside):
    assert unpacked(make_zip(tmp_path / "a.zip", ["delivery/1.png", beside]), tmp_path) == sorted(
        ["delivery/1.png", beside]
    )


def test_a_class_spelled_with_two_code_points_is_no_wrapper(tmp_path):
    path = make_zip(tmp_path / "a.zip", ["cafe\u0301/0.png"])
    (tmp_path / "folder").mkdir()
    unpack(path, tmp_path / "folder", ["caf\u00e9", "dog"])
    assert (tmp_path / "folder" / "cafe\u0301" / "0.png").is_file()


@pytest.mark.parametrize("wrapper", ["", "delivery\\"])
def test_a_zip_with_backslashes_between_folders(tmp_path, wrapper):
    names = [wrapper + name.replace("/", "\\") for name in FILES]
    assert unpacked(make_zip(tmp_path / "a.zip", [f"{wrapper}empty\\", *names]), tmp_path) == FILES


def test_a_backslash_in_a_tar_is_named(tmp_path):
    with pytest.raises(UserError, match="with a backslash in its name"):
        unpacked(make_tar(tmp_path / "a.tar", ["cat/0\\1.png"]), tmp_path)


def test_a_name_that_is_no_text(tmp_path):
    with pytest.raises(UserError, match=r"caf\\xe9.png: the name is not UTF-8"):
        unpacked(make_tar(tmp_path / "a.tar", ["cat/caf\udce9.png"]), tmp_path)
    assert not list((tmp_path / "folder").rglob("*"))


def test_a_single_class_is_no_wrapper(tmp_path):
    assert unpacked(make_zip(tmp_path / "a.zip", ["cat/0.png", "cat/1.png"]), tmp_path) == [
        "cat/0.png",
        "cat/1.png",
    ]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_real_folder_in_any_tar(tmp_path, mode):
    source = class_folders(tmp_path / "drop", 2)
    with tarfile.open(tmp_path / "a.tar", mode) as archive:
        archive.add(source, "drop")
    unpacked(tmp_path / "a.tar", tmp_path)
    for file in source.rglob("*.png"):
        assert (tmp_path / "folder" / file.relative_to(source)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    "name", ["../evil.png", "cat/../../evil.png", "/evil.png", "cat\\..\\evil.png", "C:/evil.png"]
)
def test_paths_that_lead_out_are_refused(tmp_path, make, name):
    path = make(tmp_path / "a.bin", ["cat/0.png", name])
    with pytest.raises(UserError, match="leads out of the drop's folder"):
        unpacked(path, tmp_path)
    assert not list((tmp_path / "folder").rglob("*"))
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("cat/link.png")
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="link"):
        unpacked(tmp_path / "a.zip", tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("cat/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(UserError, match="a link or device"):
        unpacked(tmp_path / "a.tar", tmp_path)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_FREE_BYTES", 1000)
    path = make_zip(tmp_path / "a.zip", ["cat/0.png"], bytes(1_000_000))
    assert path.stat().st_size * 100 < 1_000_000
    with pytest.raises(UserError, match="would unpack to 1000000 bytes"):
        unpacked(path, tmp_path)
    assert not list((tmp_path / "folder").iterdir())


def test_noise_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_FREE_BYTES", 1000)
    assert unpacked(make_zip(tmp_path / "a.zip", ["cat/0.png"], os.urandom(5000)), tmp_path) == ["cat/0.png"]


@pytest.mark.parametrize("names", [["cat/0.png", "cat/0.png"], ["cat", "cat/0.png"]])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_path_twice(tmp_path, names):
    with pytest.raises(UserError, match="twice"):
        unpacked(make_zip(tmp_path / "a.zip", names), tmp_path)


def test_damaged_content(tmp_path):
    path = make_zip(tmp_path / "a.zip", ["cat/0.png"], os.urandom(5000))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpacked(path, tmp_path)


def test_truncated_tar(tmp_path):
    path = make_tar(tmp_path / "a.tar.gz", [f"cat/{index}.png" for index in range(200)])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpacked(path, tmp_path)


def test_other_files_are_no_archives(tmp_path):
    (tmp_path / "a.zip").write_text("hello")
    assert not is_archive(tmp_path / "a.zip")
    assert not is_archive(tmp_path)
