"""What was chosen: the options of conf/'s groups, and values over them. conf/choice.yaml is its only place.

A value is addressed by its path, the tuple of keys that leads to it; `leaves` lists a nested mapping so.
"""

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from crt.errors import UserError

Path = tuple[Any, ...]  # keys are strings, but for margins, whose keys may be numbers

HEADER = """\
# What was chosen. Written by `crt compose`, `crt get-data`, `crt ingest`, `crt drop-data`, `crt pin`,
# `crt anchor` and `crt apply`.
# After an edit by hand, `crt compose` writes params.yaml from it.
"""

# What lies in data/ is no matter of taste: it stays whatever else is chosen.
FACTS: tuple[Path, ...] = tuple(
    ("data", key) for key in ("name", "num_classes", "channels", "image_size", "drops")
)
PINS: tuple[Path, ...] = (("pinned",), ("certified",), ("start",), ("gate", "against"))

_OVERRIDE = "override /"


@dataclass(frozen=True)
class Choice:
    """The options of groups, such as student: convnext, and the nested values over them."""

    options: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: Any, source: str) -> Self:
        """Read the content of a choice.yaml; `source` names it in errors.

        Raises:
            UserError: It is no mapping, or its defaults list holds something else than overrides.
        """
        if raw is None:
            return cls()
        if not isinstance(raw, dict):
            raise UserError(f"{source} is no mapping: restore it with git")
        values = {str(key): value for key, value in raw.items() if key != "defaults"}
        options = {}
        for entry in raw.get("defaults") or []:
            items = list(entry.items()) if isinstance(entry, dict) else []
            if len(items) != 1 or not str(items[0][0]).startswith(_OVERRIDE) or items[0][1] is None:
                raise UserError(
                    f"{source}: the entry {entry!r} of its defaults list is not of the form "
                    "`override /GROUP: OPTION`: correct it, or restore the file with git"
                )
            options[str(items[0][0]).removeprefix(_OVERRIDE)] = str(items[0][1])
        return cls(options, values)

    def text(self) -> str:
        """The content of choice.yaml."""
        from omegaconf import OmegaConf

        raw: dict[str, Any] = {}
        if self.options:
            raw["defaults"] = [{f"{_OVERRIDE}{group}": option} for group, option in self.options.items()]
        # OmegaConf quotes what it would not read back as the same string.
        return HEADER + OmegaConf.to_yaml(OmegaConf.create(raw | self.values))

    def copy(self) -> Self:
        """A choice of its own, to be changed."""
        return copy.deepcopy(self)

    def put(self, path: Path, value: Any) -> None:
        """Choose a value."""
        inner = self.values
        for key in path[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[path[-1]] = copy.deepcopy(value)

    def drop(self, path: Path, keep: Collection[Path] = ()) -> bool:
        """Take back what was chosen at or below a path, except at or below `keep`; whether anything was."""
        there = get(self.values, path, None) is not None or path in dict(leaves(self.values))
        kept = [(one, found) for one in keep if (found := get(self.values, one, _ABSENT)) is not _ABSENT]
        _remove(self.values, path)
        for one, found in kept:
            self.put(one, found)
        return there

    def only(self, options: Collection[str], paths: Collection[Path]) -> Self:
        """The choice of these groups, and at these paths."""
        found = type(self)({group: option for group, option in self.options.items() if group in options})
        for path in paths:
            if (value := get(self.values, path, _ABSENT)) is not _ABSENT:
                found.put(path, value)
        return found


_ABSENT = object()


def leaves(values: Mapping[Any, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values of a nested mapping with their paths. An empty mapping and a list are values."""
    for key, value in values.items():
        path = (*above, key)
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        else:
            yield path, value


def get(values: Any, path: Path, default: Any = None) -> Any:
    """The value at a path of a nested mapping."""
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return default
        values = values[key]
    return values


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[Path, tuple[Any, Any]]:
    """The paths whose values differ, with both values; None stands for a missing one too."""
    one, two = dict(leaves(before)), dict(leaves(after))
    paths = [*two, *(path for path in one if path not in two)]
    return {
        path: (one.get(path), two.get(path))
        for path in paths
        if path not in one or path not in two or one[path] != two[path]
    }


def dotted(path: Path) -> str:
    """A path as people write it: student.lr."""
    return ".".join(map(str, path))


def _remove(values: dict[str, Any], path: Path) -> None:
    """Remove what lies at a path, and the mappings that become empty by that."""
    head, *rest = path
    if head not in values:
        return
    if not rest:
        del values[head]
    elif isinstance(values[head], dict):
        _remove(values[head], tuple(rest))
        if not values[head]:
            del values[head]
