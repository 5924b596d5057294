"""`crt get-data`: put a data set into data/, record it, choose the settings that belong to it.

Every step can be repeated: after a kill, the same command ends what was begun.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crt.commands import told
from crt.commands.decidable import say_decidable
from crt.commands.pin import unpin_misfits
from crt.datasets.folders import write_folder
from crt.datasets.sources import DataSet, write_cifar10, write_digits, write_fashion_mnist
from crt.errors import UserError, first_ten
from crt.files import replacing, same_tree
from crt.project import Project
from crt.project.choice import Choice
from crt.project.data import SAMPLE_REMOTE, set_remote, show_next, unrecorded_files
from crt.project.takeover import take_over

_FOLDER = "folder:"


def get_data(
    project: Project,
    source: str,
    origin: Path | None = None,
    *,
    name: str | None = None,
    image_size: int | None = None,
) -> None:
    """Replace data/ by a data set, and choose its facts and its preset.

    Args:
        project: The repository.
        source: `digits`, `cifar10`, `fashion_mnist` or `folder:PATH`.
        origin: Files already on disk, instead of a download: CIFAR-10's archive or its folder, the folder
            with Fashion-MNIST's IDX files.
        name: For a folder: what the set is called (default: the folder's name). Where conf/preset/ has
            settings of that name (imagenet), they are chosen.
        image_size: For a folder: what images are scaled to, pixels.

    Raises:
        UserError: An unknown or damaged source, or data/ holds what DVC does not have.
    """
    root, kind = project.root, _kind(project, source, origin is not None, bool(name or image_size))
    preset = name if kind == "folder" and name in project.conf.options("preset") else kind

    take_over(project)
    lost = unrecorded_files(project)
    data = root / "data"
    with replacing(data) as aside:
        choice = _for_preset(project, preset)
        settings = project.conf.compose(choice).values["data"]
        found = _write(root, kind, source, aside, origin, name, image_size, settings)
        for key, value in _facts(found).items():
            choice.put(("data", key), value)
        project.composed(choice=choice)  # what does not fit is found before anything changes
        if lost and not same_tree(aside, data):  # the same: an earlier run was killed before it was recorded
            raise UserError(
                f"data/ holds what DVC does not have ({first_ten(lost)}): keep it with `dvc add data` "
                "or move it elsewhere, then run again"
            )

    remote = SAMPLE_REMOTE if kind == "digits" else None
    if (root / "data.dvc").exists():
        set_remote(project, remote)  # before `dvc add`, which then hands the file to git
    project.dvc("add", "data", quiet=False)
    set_remote(project, remote)
    unpin_misfits(project, choice)
    project.choose(choice)
    _report(found, near_left_out=settings["near_copies"] == "drop")
    say_decidable(project)
    show_next(project)


def _kind(project: Project, source: str, from_disk: bool, named: bool) -> str:
    """The kind of data set that `source` names, if all that was asked goes together."""
    kind = "folder" if source.startswith(_FOLDER) else source
    if kind not in ("digits", "cifar10", "fashion_mnist", "folder"):
        raise UserError(
            f"{source!r} is no known data set: choose digits, cifar10, fashion_mnist or folder:PATH"
        )
    if from_disk and kind in ("digits", "folder"):
        raise UserError(f"--from does not belong to {source!r}: it names CIFAR-10's or Fashion-MNIST's files")
    if kind != "folder" and named:
        raise UserError(f"a name and an image size can be given to folder:PATH only, not to {source!r}")
    if source == _FOLDER:
        raise UserError("folder: names no folder: write folder:PATH")
    if kind == "folder" and (project.root / "data").resolve() in [
        (path := Path(source.removeprefix(_FOLDER)).resolve()),
        *path.parents,
    ]:
        raise UserError(f"{source!r} lies in data/, which is to be replaced: move it elsewhere first")
    return kind


def _for_preset(project: Project, preset: str) -> Choice:
    """The present choice with another preset: without what was chosen for the one before."""
    choice = project.choice
    before = project.conf.compose().options["preset"]
    if before != preset:
        project.conf.forget(choice, "preset", (before, preset))
    choice.options["preset"] = preset
    return choice


def _facts(found: DataSet) -> dict[str, Any]:
    return {
        "name": found.name,
        "num_classes": len(found.classes),
        "channels": found.channels,
        "image_size": found.image_size,
        "drops": found.drops,
    }


def _write(
    root: Path,
    kind: str,
    source: str,
    out: Path,
    origin: Path | None,
    name: str | None,
    image_size: int | None,
    settings: Mapping[str, Any],
) -> DataSet:
    if kind == "digits":
        return write_digits(out)
    if kind == "cifar10":
        return write_cifar10(out, origin or _download_cifar10(root))
    if kind == "fashion_mnist":
        return write_fashion_mnist(out, origin or _download_fashion_mnist(root))
    folder = Path(source.removeprefix(_FOLDER)).expanduser()
    return write_folder(
        out,
        folder,
        name or re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-_") or "folder",
        image_size=image_size,
        resize=settings["resize"],
        skip_unreadable=settings["skip_unreadable"],
        near_copies=settings["near_copies"],
    )


def _download_cifar10(root: Path) -> Path:
    from torchvision.datasets import CIFAR10

    return _download(root, CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5)


def _download_fashion_mnist(root: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    for filename, md5 in FashionMNIST.resources:
        path = _download(root, FashionMNIST.mirrors[0] + filename, filename, md5)
    return path.parent


def _download(root: Path, url: str, filename: str, md5: str) -> Path:
    """Fetch a file, checked against torchvision's MD5, to a folder where a second run finds it again."""
    from torchvision.datasets.utils import download_url

    folder = root / ".work" / "downloads"
    print(f"downloading {url}", file=sys.stderr)
    try:
        download_url(url, str(folder), filename, md5)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{url} cannot be downloaded ({error}): get the file elsewhere and name it with --from"
        ) from None
    return folder / filename


def _report(found: DataSet, near_left_out: bool) -> None:
    print(
        f"data/ holds {found.name}: {len(found.classes)} classes, {found.channels} channel(s), "
        f"{found.image_size}x{found.image_size} pixels, drops {', '.join(found.drops)}"
    )
    for line in told.of_data_set(found, near_left_out):
        print(f"  {line}")
