"""Zip and tar archives from elsewhere: unpacked without trusting their paths, links or sizes."""

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from crt.drops.layout import check_encoding, is_data, is_junk, nfc
from crt.errors import UserError

# Images are compressed already: a delivery may unpack to 1 GiB, or else to 100 times its size.
_FREE_BYTES = 1 << 30
_RATIO = 100


@dataclass(frozen=True)
class _Member:
    """A file in an archive; reading ends at `size` at the latest."""

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive."""
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def unpack(archive: Path, folder: Path, classes: Collection[str]) -> None:
    """Unpack an archive's files into a folder.

    One folder around all images is left out, unless it is a class.

    Raises:
        UserError: a damaged archive, a path that leads out of the folder, a link, or far more data than an
            archive of images of this size can hold.
    """
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as file:
            found = (
                _zip_members(archive, file)
                if isinstance(file, zipfile.ZipFile)
                else _tar_members(archive, file)
            )
            members = [member for member in found if not any(is_junk(part) for part in member.path.parts)]
            size, limit = (
                sum(member.size for member in members),
                max(_FREE_BYTES, _RATIO * archive.stat().st_size),
            )
            if size > limit:
                raise UserError(
                    f"{archive} would unpack to {size} bytes, more than {_RATIO} times its size: "
                    "if that is right, unpack it yourself and ingest the folder"
                )
            around = _folder_around([member.path for member in members], classes)
            for member in members:
                inside = around is not None and member.path.parts[0] == around
                target = folder.joinpath(*member.path.parts[1 if inside else 0 :])
                target.parent.mkdir(parents=True, exist_ok=True)
                content = member.open()
                assert content is not None  # it is a file
                with content, target.open("xb") as out:
                    shutil.copyfileobj(content, out)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{archive} holds {error.filename} twice: pack it again") from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{archive} cannot be unpacked ({error}): pack it again, without a password"
        ) from None


def _folder_around(files: list[PurePosixPath], classes: Collection[str]) -> str | None:
    """The one folder in which all lies, but for files beside it that are no data, such as a README."""
    tops = {file.parts[0] for file in files if len(file.parts) > 1}
    beside = any(len(file.parts) == 1 and is_data(file.name) for file in files)
    known = {nfc(name) for name in classes}
    return tops.pop() if len(tops) == 1 and not beside and not {nfc(top) for top in tops} & known else None


def _zip_members(archive: Path, file: zipfile.ZipFile) -> list[_Member]:
    members = []
    for info in file.infolist():
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{archive} holds the link {info.filename!r}: pack the file itself")
        # Old programs on Windows write backslashes, which the format forbids, as separators.
        name = info.filename.replace("\\", "/")
        path = _safe_path(archive, name)
        if not name.endswith("/"):
            members.append(_Member(path, info.file_size, partial(file.open, info)))
    return members


def _tar_members(archive: Path, file: tarfile.TarFile) -> list[_Member]:
    members = []
    for info in file:
        path = _safe_path(archive, info.name)
        if info.isfile():
            members.append(_Member(path, info.size, partial(file.extractfile, info)))
        elif not info.isdir():
            raise UserError(f"{archive} holds {info.name!r}, a link or device: pack the file itself")
    return members


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    path, parts = PurePosixPath(name), name.replace("\\", "/").split("/")
    if path.is_absolute() or ".." in parts or ":" in parts[0]:
        raise UserError(
            f"{archive} holds {name!r}, which leads out of the drop's folder: pack it with plain paths"
        )
    if "\\" in name:
        raise UserError(f"{archive} holds {name!r}, with a backslash in its name: rename the file")
    check_encoding(archive / path)
    return path
