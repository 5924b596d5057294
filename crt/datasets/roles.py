"""What the parts of a data set are called: which folder or file is for training, validation, or the test."""

import re
from collections.abc import Iterable
from typing import Literal

from crt.errors import UserError

Role = Literal["train", "validation", "test"]

_WORDS: dict[str, Role] = {
    **dict.fromkeys(("train", "training", "trn", "trainval", "trainvalid"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_FILLERS = ("datasets", "dataset", "images", "image", "imgs", "img", "sets", "set", "data", "split", "part")


def role_of(name: str) -> Role | None:
    """The role that a name tells, in any spelling: `Train`, `training_set`, `test-00000-of-00001.parquet`."""
    return next((role for word in _words(name) if (role := _WORDS.get(word))), None)


def split_names(names: Iterable[str]) -> dict[Role, str]:
    """Those of the names, of folders that lie side by side, that are the parts of a data set.

    They tell a role and have nothing else in their names, or the same word each (`seg_train`, `seg_test`). A
    `train station` beside other classes is none.

    Raises:
        UserError: Two tell the same role.
    """
    groups: dict[tuple[str, ...], dict[Role, list[str]]] = {}
    for name in sorted(names):
        words = _words(name)
        roles = {_WORDS[word] for word in words if word in _WORDS}
        if len(roles) == 1:
            rest = tuple(word for word in words if word not in _WORDS and word not in _FILLERS)
            groups.setdefault(rest, {}).setdefault(roles.pop(), []).append(name)
    for rest, group in sorted(groups.items()):
        if not rest or len(group) > 1:
            if twice := [found for found in group.values() if len(found) > 1]:
                raise UserError(
                    f"{' and '.join(twice[0])} are the same part of a data set: leave one of them"
                )
            return {role: found[0] for role, found in group.items()}
    return {}


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without fillers at their ends: `TestSet` is test."""
    words = []
    for word in re.findall(r"[^\W\d_]+", name.casefold()):
        whole = next((word.removesuffix(end) for end in _FILLERS if word.removesuffix(end) in _WORDS), word)
        words.append(whole)
    return words
