"""Writes that a kill leaves undone, never half done: aside, then renamed."""

import filecmp
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty folder for writing `path`, a folder, aside. It becomes `path` at the end, or goes on an error.

    A kill leaves `path` as it was, or, between the two renames, none: then running again writes it.
    """
    aside, old = _aside(path), path.with_name(path.name + ".partial-old")
    for leftover in (aside, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside)
        raise
    if path.exists():
        path.rename(old)
    aside.rename(path)
    if old.exists():
        shutil.rmtree(old)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Where to write `path`, a file, aside. It becomes `path` at the end, or goes on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small file, UTF-8 with \\n line ends."""
    with replacing_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def same_tree(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    if files != {path.relative_to(other) for path in other.rglob("*") if path.is_file()}:
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in files)


def _aside(path: Path) -> Path:
    """Beside it, under a name that git and DVC ignore."""
    return path.with_name(path.name + ".partial")
