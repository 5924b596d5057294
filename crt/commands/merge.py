"""`crt merge-driver`: git's merge of the files that two people change when each ingests a drop and retrains.

Lists of drops are united, data.dvc's tree is merged file by file, and of dvc.lock and results only what both sides made alike
stays: `dvc repro` makes the rest anew. .gitattributes names the files, `make setup` tells git the command.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from crt.errors import UserError
from crt.files import write_text

_ABSENT, _BOTH = object(), object()


class ConflictError(Exception):
    """Both sides changed the same value in different ways."""


def merge_file(base: Path, ours: Path, theirs: Path, name: str, root: Path = Path()) -> bool:
    """Merge three versions of the file `name` into `ours`; whether that worked.

    If not, `ours` holds git's conflict markers, for people to solve, as without this command.
    """
    try:
        if name == "data.dvc":
            text = _merged_record(_yaml(base), _yaml(ours), _yaml(theirs), root)
        elif name == "dvc.lock":
            text = _dump(_merged_lock(*map(_yaml, (base, ours, theirs))))
        elif name == "conf/dataset.yaml":
            text = _merged_dataset(base, ours, theirs)
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
        ConflictError: both sides changed one value in different ways; it is named.
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


def _merged_dataset(base: Path, ours: Path, theirs: Path) -> str:
    from crt.commands.dataset import with_drops

    merged = merge_values(*map(_yaml, (base, ours, theirs)))
    for side in (ours, theirs):  # with the comments of the side whose other settings stay
        if {**_yaml(side), "drops": merged["drops"]} == merged:
            return with_drops(side.read_text(encoding="utf-8"), merged["drops"])
    raise ConflictError("both sides changed what lies in data/")


def _merged_params(base: Path, ours: Path, theirs: Path) -> str:
    from crt.commands.dataset import params_text

    merged = merge_values(*map(_yaml, (base, ours, theirs)))
    return params_text(merged, "the merged params.yaml")[0]


def _merged_record(base: Any, ours: Any, theirs: Any, root: Path) -> str:
    """data.dvc whose folder has what either side added and lacks what either removed.

    Raises:
        ConflictError: a file, or a setting, was changed by both.
        UserError: a side's list of files cannot be got.
    """
    sides = [dict(side["outs"][0]) if side else {} for side in (base, ours, theirs)]
    hashes = [side.pop("md5", None) for side in sides]
    sizes = [side.pop("size", None) for side in sides]
    for side in sides:
        side.pop("nfiles", None)
    merged = merge_values(sides[0], sides[1], sides[2])
    digest, count = _merged_tree(hashes, [side.get("remote") for side in sides], root)
    out = {"md5": digest, "nfiles": count} | merged
    if (
        None not in sizes
    ):  # for people; DVC writes none after `dvc add` of a part. Wrong if both added the same file.
        out["size"] = sizes[1] + sizes[2] - sizes[0]
    return _dump({**ours, "outs": [out]})


def _merged_tree(hashes: list[str | None], remotes: list[str | None], root: Path) -> tuple[str, int]:
    """The hash of the merged folder, which is put into DVC's cache, and the number of its files."""
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import MergeError, merge

    with Repo(str(root)) as repo:
        infos = [HashInfo("md5", value) if value else None for value in hashes]
        for info, remote in zip(infos, remotes, strict=True):
            if info is not None and not repo.cache.local.exists(info.value):
                _fetch(repo, info, [remote, None])
        try:
            tree = merge(repo.cache.local, infos[0], infos[1], infos[2], allowed=["add", "remove", "change"])
        except MergeError as error:
            raise ConflictError(f"both sides changed a file of data/ ({error})") from None
        repo.cache.local.add(tree.path, tree.fs, tree.oid)
        return str(tree.hash_info.value), len(tree)


def _fetch(repo: Any, info: Any, remotes: list[str | None]) -> None:
    """Get a folder's list of files, not the files."""
    for remote in dict.fromkeys(remotes):
        try:
            repo.cloud.pull({info}, remote=remote)
        except Exception:  # noqa: S112 - each storage raises its own library's errors; the next remote may have it
            continue
        if repo.cache.local.exists(info.value):
            return
    raise UserError(
        f"the list of files {info.value} is in no remote: ask the other side to `dvc push`, then merge again"
    )


def _yaml(path: Path) -> Any:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if found is not None and not isinstance(found, Mapping):
        raise ConflictError("it is no YAML mapping")
    return found


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False)
