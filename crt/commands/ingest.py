"""`crt ingest` and `crt drop-data`: one more drop of training data, or one less.

No step leaves a mark of its own: after a kill, the same command ends what was begun.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crt.commands import told
from crt.commands.arrived import Arrived
from crt.commands.decidable import say_decidable
from crt.commands.grow import Growth, add_to_data, find_growth, known_classes, set_aside
from crt.commands.pin import pin_newest, said_anchor, set_pins
from crt.config import Config, Data
from crt.datasets.deliveries import write_drop
from crt.drops.copies import KnownImages
from crt.drops.layout import read_classes
from crt.drops.prepare import Checks, DecodedImage, check_drop, prepared_images, raw_images
from crt.errors import UserError, first_ten
from crt.files import replacing, same_tree
from crt.project import Project
from crt.project.data import leave_sample_remote, recorded_drops, show_next, unrecorded_files
from crt.project.takeover import take_over
from crt.spec import ImageSpec

DROPS = ("data", "drops")


def ingest(project: Project, source: Path, drop: str, *, add_classes: bool = False) -> None:
    """Copy a delivery to data/train/<drop>, after the checks that `prepare` makes, and record it.

    Args:
        project: The repository.
        source: A folder or file in a layout that docs/data.md lists.
        drop: The new drop's name.
        add_classes: Class folders that classes.txt does not know become classes; a fifth of their images goes
            to the test set.

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
    received = _receive(project, source, drop, add_classes)
    growth = received.growth
    leave_sample_remote(project)
    changed = ["data/classes.txt", "data/test"] if growth else []
    project.dvc("add", f"data/train/{drop}", *changed, quiet=False)
    choice, pinned = project.choice, None
    choice.put(DROPS, [*(name for name in project.params.data.drops if name != drop), drop])
    if growth:
        choice.put(("data", "num_classes"), len(growth.classes))
        set_pins(choice, None)
    else:
        pinned = pin_newest(project, choice)
    config = project.choose(choice)
    _report(drop, received)
    if growth:
        _report_growth(growth, received.summary, config)
    received.arrived.report()
    if pinned is not None:
        print(f"{pinned.tag} is pinned, as baseline and as start of training (`crt pin` chooses another)")
        print(said_anchor(pinned))
    say_decidable(project)
    show_next(project)


@dataclass(frozen=True)
class _Received:
    """What is known of a delivery that passed all checks and lies in data/."""

    summary: dict[str, Any]
    understood: list[str]
    arrived: Arrived
    growth: Growth | None


def _receive(project: Project, source: Path, drop: str, add_classes: bool) -> _Received:
    """Check a delivery and write it to data/."""
    root, data = project.root, project.params.data
    target = root / "data" / "train" / drop
    known = drop in data.drops
    taken = f"the drop {drop!r} exists already: choose another name, or remove it with `crt drop-data {drop}`"
    if known and not target.exists():
        raise UserError(taken)
    _pull_missing(project)
    growth = None
    staged = root / ".work" / "new-classes"
    shutil.rmtree(staged, ignore_errors=True)
    classes = (known_classes if add_classes else read_classes)(root / "data", data.num_classes)
    with replacing(target) as aside:
        understood = write_drop(source, aside, None if add_classes else classes)
        if add_classes:
            growth = find_growth(aside, classes, data)
            set_aside(growth, drop, staged)
            classes = growth.classes
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
        if growth:
            add_to_data(growth, drop, staged, root / "data", data)
    return _Received(summary, understood, arrived, growth)


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
        if "that classes.txt does not know" in message:
            message += "; `crt ingest --add-classes` makes them classes"
        raise UserError(message.replace(str(folder), str(source))) from None


def _prepared_test(project: Project) -> KnownImages | None:
    """The images of the prepared test set; None: it is missing or out of date."""
    folder = project.root / "prepared" / "test"
    if not folder.exists() or json.loads(project.dvc("status", "--json", "prepare_test")):
        return None
    return prepared_images(folder)


def _report_growth(growth: Growth, summary: dict[str, Any], config: Config) -> None:
    counts = Counter(growth.classes[file.label] for file in growth.test)
    tested = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"  new classes: {', '.join(growth.new)}; to the test set: {tested}")
    print(
        "  no release knows them, so none is pinned: release with `crt release --bump major` when it is time"
    )
    all_there = all(summary["classes"].values())
    remedy = (
        f"`crt compose teacher.drop={config.data.drops[-1]}` trains it on this one, which has all classes"
    )
    if not all_there:
        remedy = (
            "choose a drop of all classes (teacher.drop), or a method without a teacher (method=consistency)"
        )
    print(f"  the teacher's drop {config.teacher.drop} has no image of them: {remedy}")


def _report(drop: str, received: _Received) -> None:
    summary = received.summary
    counts = ", ".join(f"{name} {count}" for name, count in summary["classes"].items() if count)
    print(f"the drop {drop}: {summary['images']} images ({counts or 'no labels'})")
    for line in [*received.understood, *told.of_summary(summary)]:
        print(f"  {line}")
