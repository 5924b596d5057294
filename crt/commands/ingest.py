"""`crt ingest` and `crt drop-data`: one more drop of training data, or one less.

No step leaves a mark of its own: after a kill, the same command ends what was begun.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crt.commands import told
from crt.commands.arrived import Arrived
from crt.commands.decidable import say_decidable
from crt.commands.pin import pin_newest, said_anchor
from crt.config import Data
from crt.datasets.deliveries import write_drop
from crt.drops.copies import KnownImages
from crt.drops.layout import first_ten, read_classes
from crt.drops.prepare import Checks, DecodedImage, check_drop, prepared_images, raw_images
from crt.errors import UserError
from crt.files import replacing, same_tree
from crt.project import Project
from crt.project.data import leave_sample_remote, recorded_drops, show_next, unrecorded_files
from crt.project.takeover import take_over
from crt.spec import ImageSpec

DROPS = ("data", "drops")


def ingest(project: Project, source: Path, drop: str) -> None:
    """Copy a delivery to data/train/<drop>, after the checks that `prepare` makes, and record it.

    Args:
        project: The repository.
        source: A folder as `crt.drops.layout` describes it, an .npz, or a zip or tar archive of such a
            folder.
        drop: The new drop's name.

    Raises:
        UserError: The delivery fails a check, or the name is taken; nothing is changed then.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", drop) or drop == "test":
        raise UserError(
            f"{drop[:100]!r} cannot name a drop: use at most 100 letters, digits, - and _, "
            "a letter or digit first (and not 'test')"
        )
    if not source.exists():
        raise UserError(f"{source} is missing: name a folder, an .npz or an archive of images")
    take_over(project)
    root, data = project.root, project.params.data
    target = root / "data" / "train" / drop
    known = drop in data.drops
    taken = f"the drop {drop!r} exists already: choose another name, or remove it with `crt drop-data {drop}`"
    if known and not target.exists():
        raise UserError(taken)

    _pull_missing(project)
    classes = read_classes(root / "data", data.num_classes)
    with replacing(target) as aside:
        understood = write_drop(source, aside, classes)
        arrived = Arrived(root, [name for name in data.drops if name != drop], classes)
        summary = _check(project, aside, source, classes, data, arrived.look)
        arrived.check(source)
        if target.exists() and not same_tree(aside, target):  # the same: an earlier run was killed
            if known:
                raise UserError(taken)
            raise UserError(
                f"{target} exists, with other contents than {source}, but is no drop yet: "
                "run the `crt ingest` that was killed once more, or move it elsewhere first"
            )

    leave_sample_remote(project)
    project.dvc("add", f"data/train/{drop}", quiet=False)
    choice = project.choice
    choice.put(DROPS, [*(name for name in data.drops if name != drop), drop])
    pinned = pin_newest(project, choice)
    project.choose(choice)
    _report(drop, summary, understood)
    arrived.report()
    if pinned is not None:
        print(f"{pinned.tag} is pinned, as baseline and as start of training (`crt pin` chooses another)")
        print(said_anchor(pinned))
    say_decidable(project)
    show_next(project)


def drop_data(project: Project, drop: str) -> None:
    """Remove a drop: its files, their record, its place in the settings, and what was prepared from it.

    DVC's cache keeps the files: `git checkout` of the former data.dvc and `dvc checkout` bring them back.

    Raises:
        UserError: No such drop, the only one, the teacher's, or one that DVC has not recorded.
    """
    before = project.params.data.drops
    take_over(project)
    config = project.params
    drops = config.data.drops
    if drop in before and drop not in drops:  # a kill had left only this
        print(f"the drop {drop} is removed; left: {', '.join(drops)}")
        show_next(project)
        return
    if drop not in drops:
        raise UserError(f"there is no drop {drop!r}: data.drops lists {', '.join(drops)}")
    left = [name for name in drops if name != drop]
    if not left:
        raise UserError(f"{drop!r} is the only drop: ingest another one before removing it")
    if config.teacher.drop == drop:
        raise UserError(
            f"the teacher is trained on {drop!r}: choose another drop for it first "
            f"(`crt compose teacher.drop={left[0]}`), which trains the teacher again"
        )
    choice = project.choice
    choice.put(DROPS, left)
    project.composed(choice=choice)  # what does not fit is found before anything changes
    target = project.root / "data" / "train" / drop
    if lost := [name for name in unrecorded_files(project) if name.startswith(f"data/train/{drop}/")]:
        raise UserError(
            f"{target} holds what DVC does not have ({first_ten(lost)}): "
            "`dvc add` it or move it elsewhere first"
        )

    leave_sample_remote(project)
    if target.exists():
        shutil.rmtree(target)
    (project.root / "data" / "train").mkdir(parents=True, exist_ok=True)
    if drop in recorded_drops(project):
        project.dvc("add", f"data/train/{drop}", quiet=False)
    project.choose(choice)
    print(f"the drop {drop} is removed; left: {', '.join(left)}")
    show_next(project)


def _pull_missing(project: Project) -> None:
    """Get what the checks need from DVC, where only a part of data/ was pulled; never the other drops."""
    missing = [name for name in ("data/classes.txt", "data/test") if not (project.root / name).exists()]
    if missing and (project.root / "data.dvc").exists():
        project.dvc("pull", *missing, quiet=False)


def _check(
    project: Project,
    folder: Path,
    source: Path,
    classes: list[str],
    data: Data,
    look: Callable[[DecodedImage], None],
) -> dict[str, Any]:
    """The checks of the prepare stage, on the copy; errors name the source, which is what the user knows."""
    spec = ImageSpec(tuple(classes), data.image_size, data.channels, data.resize)
    tested = _prepared_test(project)
    if tested is None:
        tested = raw_images(project.root / "data" / "test", spec=spec, skip_unreadable=data.skip_unreadable)
    checks = Checks(data.validation, data.skip_unreadable, tested, data.near_copies)
    try:
        return check_drop(folder, spec=spec, checks=checks, look=look)
    except UserError as error:
        message = str(error)
        if source.is_file():  # its copy lies in the folder that stands for it
            message = message.replace(str(folder / source.name), str(source))
        raise UserError(message.replace(str(folder), str(source))) from None


def _prepared_test(project: Project) -> KnownImages | None:
    """The images of the prepared test set; None: it is missing or out of date."""
    folder = project.root / "prepared" / "test"
    if not folder.exists() or json.loads(project.dvc("status", "--json", "prepare_test")):
        return None
    return prepared_images(folder)


def _report(drop: str, summary: dict[str, Any], understood: list[str]) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in summary["classes"].items() if count)
    print(f"the drop {drop}: {summary['images']} images ({counts or 'no labels'})")
    for line in [*understood, *told.of_summary(summary)]:
        print(f"  {line}")
