"""`crt relabel`: rename, merge or split classes, or correct single labels, in all of data/.

data/ is written beside the present one, with links to the same files, and then takes its place; DVC's cache
keeps the former one. After a kill, the same command ends what was begun.
"""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crt.commands.pin import unpin_misfits
from crt.datasets.lists import ImageIndex
from crt.datasets.sources import write_classes
from crt.drops.layout import (
    LABELS_FILE,
    ClassNames,
    Drop,
    check_class_names,
    is_labels,
    read_drop,
    walk_files,
)
from crt.drops.npz import write_npz
from crt.drops.tables import read_table
from crt.errors import UserError, first_ten
from crt.files import replacing
from crt.project import Project
from crt.project.data import leave_sample_remote, recorded_drops, show_next, unrecorded_files
from crt.project.takeover import take_over


@dataclass(frozen=True)
class _Part:
    """The test set or a drop: its place below data/, and each image's class by its name there; None: none."""

    place: str
    drop: Drop
    labels: dict[str, str | None]


def relabel(project: Project, changes: Sequence[str]) -> None:
    """Give images other labels, and classes.txt the classes that there are then.

    Args:
        project: The repository.
        changes: `OLD=NEW` renames a class, or merges it into one that there is. The path of a table with the
            columns file,label labels the images that it names, by their paths below data/ or an end of these
            (`<archive>#<number>` for one of an archive).

    Raises:
        UserError: There is no such class or image, a class would have no test image, or a part of data/ is
            not here. Nothing is changed then.
    """
    take_over(project)
    data = project.root / "data"
    before = _classes(data)
    parts = _read_parts(project, before)
    labels = _Labels(parts, before)
    for change in changes:
        old, equals, new = change.partition("=")
        if not equals or Path(change).is_file():
            labels.take(Path(change))
        elif not (labels.is_renamed(old, new) and _was_killed(project, before)):
            labels.rename(old, new)
    classes = labels.classes()
    if labels.changed:
        with replacing(data) as aside:
            for part in parts:
                _write(part, data, aside, classes)
            for path in data.iterdir():
                if path.is_file():
                    _link(path, aside / path.name)
            write_classes(aside, classes)
    leave_sample_remote(project)
    project.dvc("add", "data", quiet=False)
    choice = project.choice
    choice.put(("data", "num_classes"), len(classes))
    unpin_misfits(project, choice)
    project.choose(choice)
    for (former, present), count in labels.changed.items():
        print(f"{count} image(s) of {'no class' if former is None else former} are of {present} now")
    if not labels.changed:
        print("no label changes")
    print(f"classes: {', '.join(classes)}")
    show_next(project)


class _Labels:
    """The labels of all images, and how they change."""

    def __init__(self, parts: Sequence[_Part], classes: Sequence[str]) -> None:
        self.changed: Counter[tuple[str | None, str]] = Counter()  # from which class to which, and how often
        self._parts = parts
        self._names = list(classes)
        self._tested = self._of_the_test()
        self._index = ImageIndex(f"{part.place}/{name}" for part in parts for name in part.labels)
        self._owners = {f"{part.place}/{name}": (part, name) for part in parts for name in part.labels}

    def is_renamed(self, old: str, new: str) -> bool:
        """Whether there is the new class alone."""
        known = ClassNames(self._names)
        return known.label(old) is None and known.label(new) is not None

    def rename(self, old: str, new: str) -> None:
        """Rename a class, or merge it into another."""
        known = ClassNames(self._names)
        place, there = known.label(old), known.label(new)
        if place is None:
            raise UserError(f"there is no class {old!r} to rename: classes.txt has {first_ten(self._names)}")
        check_class_names([new], "the command")
        former = self._names[place]
        if there is None or there == place:
            self._names[place] = new
        else:
            new = self._names[there]
        for part in self._parts:
            for name, label in part.labels.items():
                if label == former:
                    self._put(part, name, new)

    def take(self, path: Path) -> None:
        """Label the images that a table names."""
        if not path.is_file():
            raise UserError(
                f"{path} is no file, and no change OLD=NEW: give a class to rename or a table of file,label"
            )
        table = read_table(path)
        file, label = table.place("file", "name", "image"), table.place("label", "class")
        if file is None or label is None:
            raise UserError(f"{path} needs a first line with the columns file,label")
        for number, cells in table.rows:
            found = self._index.find(cells[file], "")
            if found is None:
                raise UserError(
                    f"{path}, line {number}: {cells[file]!r} is no image of data/, or several: "
                    "write its path below data/"
                )
            check_class_names([cells[label]], f"{path}, line {number}")
            there = ClassNames(self._names).label(cells[label])
            if there is None:
                self._names.append(cells[label])
            self._put(*self._owners[found], self._names[-1 if there is None else there])

    def classes(self) -> list[str]:
        """The classes that there are now: those that lost all of their images are left out.

        Raises:
            UserError: One is left, or one has no test image that had one, or is new.
        """
        lost = {old for old, _ in self.changed} - {
            label for part in self._parts for label in part.labels.values()
        }
        names = [name for name in self._names if name not in lost]
        if len(names) < 2:
            raise UserError(f"{len(names)} class would be left: at least two are needed")
        check_class_names(names, "the command")
        touched = self._tested | {new for _, new in self.changed}
        if without := [name for name in names if name in touched - self._of_the_test()]:
            raise UserError(
                f"the class {first_ten(without)} would have no test image: label images of data/test too"
            )
        return names

    def _of_the_test(self) -> set[str | None]:
        return {label for part in self._parts if part.place == "test" for label in part.labels.values()}

    def _put(self, part: _Part, name: str, label: str) -> None:
        if part.labels[name] != label:
            self.changed[part.labels[name], label] += 1
            part.labels[name] = label


def _classes(data: Path) -> list[str]:
    """The lines of classes.txt: as many as a run that was killed has left there."""
    try:
        lines = (data / "classes.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError(f"{data / 'classes.txt'} is missing: `dvc pull data.dvc`") from None
    return [line.strip() for line in lines if line.strip()]


def _was_killed(project: Project, classes: Sequence[str]) -> bool:
    """Whether a run was killed after it had written data/."""
    return len(classes) != project.params.data.num_classes or bool(unrecorded_files(project))


def _read_parts(project: Project, classes: Sequence[str]) -> list[_Part]:
    data = project.root / "data"
    drops = dict.fromkeys([*project.params.data.drops, *recorded_drops(project)])
    parts = []
    for place in ("test", *(f"train/{drop}" for drop in drops)):
        if not (data / place).is_dir():
            raise UserError(
                f"{data / place} is missing, and labels change in all of data/: `dvc pull data.dvc`"
            )
        drop = read_drop(data / place, classes)
        labels = {name: classes[label] if label >= 0 else None for name, label in _labels(drop)}
        parts.append(_Part(place, drop, labels))
    return parts


def _labels(drop: Drop) -> Iterator[tuple[str, int]]:
    for file in drop.files:
        yield file.name, file.label
    for archive in drop.archives:
        for number, label in enumerate(archive.labels.tolist()):
            yield f"{archive.path.name}#{number}", label


def _write(part: _Part, data: Path, out: Path, classes: Sequence[str]) -> None:
    """The part with its labels, in the layout that it has; images without a class get a table of labels."""
    source, target = data / part.place, out / part.place
    archives = {archive.path: archive for archive in part.drop.archives}
    flat = all("/" not in file.name for file in part.drop.files)
    images = {file.path for file in part.drop.files}
    for path in walk_files(source):
        name = path.relative_to(source).as_posix()
        if path in archives:
            labels = [part.labels[f"{name}#{number}"] for number in range(archives[path].count)]
            numbers = [-1 if label is None else classes.index(label) for label in labels]
            _write_archive(path, target / name, numbers, archives[path].labels)
        elif path in images and not flat:
            _link(path, target / f"{part.labels[name]}/{name.partition('/')[2]}")
        elif not is_labels(path.name):
            _link(path, target / name)
    labeled = [(name, label) for name, label in part.labels.items() if label is not None]
    if flat and images and labeled:
        with (target / LABELS_FILE).open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("file", "label"), *labeled])


def _write_archive(path: Path, target: Path, labels: Sequence[int], before: np.ndarray) -> None:
    if list(labels) == before.tolist():
        _link(path, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with np.load(path, allow_pickle=False) as arrays:
        write_npz(target, images=arrays["images"], labels=np.array(labels, np.int64))


def _link(path: Path, target: Path) -> None:
    """The same file at another place; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    free, count = target, 1
    while free.exists():  # two classes that become one may have files of the same name
        count += 1
        free = target.with_name(f"{target.stem}-{count}{target.suffix}")
    try:
        os.link(path.resolve(), free)
    except OSError:
        shutil.copyfile(path, free)
