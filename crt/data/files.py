"""Writes that a kill leaves undone, never half done."""

import os
import shutil
from pathlib import Path


def partial(path: Path) -> Path:
    """Where `path` is written before it is complete: beside it, under a name that git and DVC ignore."""
    return path.with_name(path.name + ".partial")


def fresh_partial(path: Path) -> Path:
    """An empty folder for writing `path` aside; what a killed run left there is removed."""
    aside = partial(path)
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    return aside


def put_in_place(aside: Path, path: Path) -> None:
    """Rename the folder `aside` to `path`; a folder that stands there goes away first.

    A kill between the two renames leaves no `path` but both folders; running again writes it anew.
    """
    old = path.with_name(path.name + ".partial-old")
    if old.exists():
        shutil.rmtree(old)
    if path.exists():
        path.rename(old)
    aside.rename(path)
    if old.exists():
        shutil.rmtree(old)


def write_text(path: Path, text: str) -> None:
    """Write a small file, UTF-8 with \\n line ends, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = partial(path)
    aside.write_text(text, encoding="utf-8", newline="\n")
    os.replace(aside, path)
