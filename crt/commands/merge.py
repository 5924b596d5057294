"""`crt merge-driver`: git's merge of the files that two people change when each ingests a drop and retrains.

Choices and parameters are merged value by value and lists of drops are united; data.dvc's tree is merged by
DVC. Of dvc.lock and results only what both sides made alike stays: `dvc repro` makes the rest. .gitattributes
names the files, `make setup` tells git the command.
"""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from crt.config import validate
from crt.errors import UserError
from crt.files import write_text
from crt.project.choice import Choice

_ABSENT, _BOTH = object(), object()
_CONTENT = ("md5", "size", "nfiles")  # of an output in a .dvc file, beside its options


class ConflictError(Exception):
    """Both sides changed the same value in different ways."""


def merge_file(base: Path, ours: Path, theirs: Path, name: str, root: Path = Path()) -> bool:
    """Merge three versions of a file into `ours`; whether that worked.

    If not, `ours` holds git's conflict markers, for people to solve, as without this command.

    Args:
        base: The file as both sides had it: git's %O.
        ours: As our side has it: git's %A.
        theirs: As the other side has it: git's %B.
        name: Its path in the repository: git's %P.
        root: The repository.
    """
    try:
        if name == "data.dvc":
            text = _merged_record(base, ours, theirs, root)
        elif name == "dvc.lock":
            text = _merged_lock_text(base, ours, theirs)
        elif name == "conf/choice.yaml":
            text = _merged_choice(*(Choice.parse(_yaml(side), name) for side in (base, ours, theirs))).text()
        elif name == "params.yaml":
            text = _merged_params(base, ours, theirs)
        elif name.startswith("results/"):
            return True  # ours stays until `dvc repro` writes it again, since dvc.lock has lost its stage
        else:
            raise ConflictError(f"{name} is not one of the files that crt merges")
    except (ConflictError, UserError) as error:
        print(f"crt merge-driver: {name}: {error}")
        subprocess.run(["git", "merge-file", "-L", "ours", "-L", "base", "-L", "theirs", ours, base, theirs])
        return False
    write_text(ours, text)
    return True


def merge_values(base: Any, ours: Any, theirs: Any, where: str = "") -> Any:
    """The three-way merge of YAML values: mappings key by key, lists of plain values as sets in our order.

    Raises:
        ConflictError: Both sides changed one value in different ways; it is named.
    """
    if (chosen := _changed_side(base, ours, theirs)) is not _BOTH:
        return chosen
    if isinstance(ours, dict) and isinstance(theirs, dict):
        before = base if isinstance(base, dict) else {}
        merged = {}
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            one, two, three = (side.get(key, _ABSENT) for side in (before, ours, theirs))
            value = merge_values(one, two, three, f"{where}.{key}" if where else str(key))
            if value is not _ABSENT:
                merged[key] = value
        return merged
    if isinstance(ours, list) and isinstance(theirs, list):
        old = base if isinstance(base, list) else []
        kept = [item for item in ours if item in theirs or item not in old]
        return kept + [item for item in theirs if item not in ours and item not in old]
    raise ConflictError(f"both sides changed {where or 'it'}")


def _changed_side(base: Any, ours: Any, theirs: Any) -> Any:
    """The version of the side that changed it, whole; _BOTH: the two changed it in different ways."""
    if theirs in (base, ours):
        return ours
    return theirs if ours == base else _BOTH


def _merged_lock(base: Any, ours: Any, theirs: Any) -> dict[str, Any]:
    """dvc.lock without the stages that both sides ran differently: a stage's record is never a mixture."""
    before, mine, other = (side.get("stages", {}) for side in (base or {}, ours, theirs))
    stages = {}
    for name in [*mine, *(name for name in other if name not in mine)]:
        chosen = _changed_side(*(side.get(name, _ABSENT) for side in (before, mine, other)))
        if chosen is not _BOTH and chosen is not _ABSENT:
            stages[name] = chosen
    return {**ours, "stages": stages}


def _merged_lock_text(*sides: Path) -> str:
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    texts = [side.read_text(encoding="utf-8") for side in sides]
    text: str = dumps_yaml(_merged_lock(*(parse_yaml_for_update(text, "dvc.lock") for text in texts)))
    return text


def _merged_choice(base: Choice, ours: Choice, theirs: Choice) -> Choice:
    return Choice(
        merge_values(base.options, ours.options, theirs.options, "the options"),
        merge_values(base.values, ours.values, theirs.values),
    )


def _merged_params(base: Path, ours: Path, theirs: Path) -> str:
    """What conf/ will compose to: git merges it at the same time, and does not show it before the end."""
    from omegaconf import OmegaConf

    merged = merge_values(*map(_yaml, (base, ours, theirs)))
    validate(merged, "the merged params.yaml")
    return OmegaConf.to_yaml(OmegaConf.create(merged))


def _merged_record(base: Path, ours: Path, theirs: Path, root: Path) -> str:
    """data.dvc whose folder has what either side added and lacks what either removed, by DVC's own merge.

    Raises:
        ConflictError: A file, or a setting, was changed by both.
        UserError: A side's list of files cannot be read.
    """
    from dvc.dvcfile import load_file
    from dvc.exceptions import MergeError
    from dvc.repo import Repo

    records = [_yaml(side) for side in (base, ours, theirs)]
    options = [
        {key: value for key, value in record["outs"][0].items() if key not in _CONTENT} if record else {}
        for record in records
    ]
    # Where one is changed, such as the remote, DVC refuses to merge.
    merged = merge_values(options[0], options[1], options[2])
    with Repo(str(root)) as repo, tempfile.TemporaryDirectory(dir=root, prefix=".merge-") as folder:
        files = []
        for side, record, before in zip(("base", "ours", "theirs"), records, options, strict=True):
            path = Path(folder) / f"{side}.dvc"
            if record:
                out = {key: value for key, value in record["outs"][0].items() if key in _CONTENT}
                _fetch(repo, out["md5"], [before.get("remote"), None])
                record = {**record, "outs": [out | merged]}
            path.write_text(_dump(record) if record else "", encoding="utf-8")
            files.append(load_file(repo, str(path), verify=False))
        try:
            files[1].merge(files[0], files[2], allowed=["add", "remove", "change"])
        except MergeError as error:
            raise ConflictError(f"both sides changed a file of data/ ({error})") from None
        return (Path(folder) / "ours.dvc").read_text(encoding="utf-8")


def _fetch(repo: Any, digest: str, remotes: list[str | None]) -> None:
    """Get a folder's list of files, not the files."""
    from dvc_data.hashfile.hash_info import HashInfo

    for remote in dict.fromkeys(remotes):
        if repo.cache.local.exists(digest):
            return
        try:
            repo.cloud.pull({HashInfo("md5", digest)}, remote=remote)
        # Each storage raises its own library's errors; the next remote may have it.
        except Exception:  # noqa: S112
            continue
    if not repo.cache.local.exists(digest):
        raise UserError(
            f"the list of files {digest} is in no remote: ask the other side to `dvc push`, then merge again"
        )


def _yaml(path: Path) -> Any:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if found is not None and not isinstance(found, Mapping):
        raise ConflictError("it is no YAML mapping")
    return found


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False)
