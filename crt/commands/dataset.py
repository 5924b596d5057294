"""What records the contents of data/: data.dvc, conf/dataset.yaml and, for its drops, params.yaml.

DVC is called as a command, so that this module stays light and behaves as a user's own `dvc add` does.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from crt.commands.compose import compose_params
from crt.config import Config, load, validate
from crt.datasets.sources import DataSet
from crt.errors import UserError
from crt.files import write_text

SAMPLE_REMOTE = "sample"  # lies in the repository and holds the digits only


def dvc(root: Path, *arguments: str, quiet: bool = True) -> str:
    """Run DVC in the repository `root`; its standard output. Unless `quiet`, its progress shows on stderr.

    Raises:
        UserError: it failed; with its own words where it was quiet.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, text=True
    )
    if done.returncode:
        lines = (done.stderr or "").strip().splitlines()
        reason = next((line for line in lines if line.startswith("ERROR")), "its message stands above")
        raise UserError(
            f"`dvc {' '.join(arguments)}` failed in {root.resolve()} ({reason}): mend that and run again"
        )
    return done.stdout


def unrecorded_files(root: Path) -> list[str]:
    """Files under data/ that are not, as they are, in DVC's cache under data.dvc: replacing data/ would lose them."""
    if not any(path.is_file() for path in (root / "data").rglob("*")):
        return []
    if not (root / "data.dvc").exists():
        return sorted(
            path.relative_to(root).as_posix() for path in (root / "data").rglob("*") if path.is_file()
        )
    status = json.loads(dvc(root, "data", "status", "--granular", "--json"))
    changes = status.get("uncommitted", {})
    paths = [path for kind, found in changes.items() if kind != "renamed" for path in found]
    paths += [item["new"] for item in changes.get("renamed", [])] + status.get("not_in_cache", [])
    # What is deleted, or was never pulled, cannot be lost.
    return sorted({path for path in paths if path.startswith("data/") and (root / path).is_file()})


def recorded_drops(root: Path) -> list[str]:
    """The drops that data.dvc records, whether pulled or not.

    Raises:
        UserError: its list of files was never pulled.
    """
    try:
        found = json.loads(dvc(root, "list", ".", "data/train", "--dvc-only", "--json"))
    except UserError as error:
        raise UserError(
            f"what data.dvc records cannot be read: `dvc pull data.dvc`, then run again ({error})"
        ) from None
    return [item["path"] for item in found]


def set_remote(root: Path, remote: str | None) -> None:
    """Name the DVC remote that data/ belongs to, in data.dvc; None: the default remote."""
    path = root / "data.dvc"
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    out = record["outs"][0]
    if out.get("remote") == remote:
        return
    out.pop("remote", None)
    if remote is not None:
        out["remote"] = remote
    write_text(path, yaml.safe_dump(record, sort_keys=False))


def leave_sample_remote(root: Path) -> None:
    """Let data/ belong to the default remote from now on, if it is the sample: what users add is not for git.

    What the sample remote has is fetched before, so that `dvc push` can hand on the whole of data/.
    """
    record = yaml.safe_load((root / "data.dvc").read_text(encoding="utf-8"))
    if record["outs"][0].get("remote") == SAMPLE_REMOTE:
        dvc(root, "fetch", "data.dvc")
        set_remote(root, None)


def has_default_remote(root: Path) -> bool:
    """Whether DVC has a remote that `dvc push` uses by itself."""
    return "(default)" in dvc(root, "remote", "list")


def show_next(root: Path) -> None:
    """Print what is left to do once data/ has changed."""
    print("next: `dvc repro`, then `git commit` data.dvc, conf/ and params.yaml with the results")
    record = yaml.safe_load((root / "data.dvc").read_text(encoding="utf-8"))
    if record["outs"][0].get("remote") is None and not has_default_remote(root):
        print("data/ is on this machine only: `dvc remote add -d NAME URL` and `dvc push` share it")


def remove_prepared(root: Path, drops: Sequence[str]) -> None:
    """Remove what was prepared from other drops than these.

    DVC leaves it when a stage goes away, and then counts it as a part of prepared/train and banks, which the student depends
    on.
    """
    for folder in (*(root / "prepared" / "train").glob("*/"), *(root / "banks").glob("*/")):
        if folder.name not in drops:
            shutil.rmtree(folder)
    for metric in (root / "results" / "prepare").glob("*.json"):
        if metric.stem not in (*drops, "test"):
            metric.unlink()


def read_dataset(root: Path) -> dict[str, Any]:
    """conf/dataset.yaml.

    Raises:
        UserError: it is missing or lists no drops.
    """
    path = root / "conf" / "dataset.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it with git") from None
    if not isinstance(found, dict) or not isinstance(found.get("drops"), list):
        raise UserError(f"{path} has no list `drops`: restore it with git")
    return found


def write_dataset(root: Path, found: DataSet) -> None:
    """Write conf/dataset.yaml, with its leading comments kept."""
    path = root / "conf" / "dataset.yaml"
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line)
    lines = [
        *comments,
        f"name: {_scalar(found.name)}",
        f"num_classes: {len(found.classes)}",
        f"channels: {found.channels}",
        f"image_size: {found.image_size}",
        "drops:",
        # Quoted, because a drop may look like a number or a date.
        *(f"- {json.dumps(drop)}" for drop in found.drops),
    ]
    write_text(path, "\n".join(lines) + "\n")


def choose_preset(root: Path, data: str, experiment: str) -> None:
    """Set the data group and the preset in conf/config.yaml's defaults list; all else stays as it is.

    Raises:
        UserError: the list has no such lines any more.
    """
    path = root / "conf" / "config.yaml"
    text = path.read_text(encoding="utf-8")
    for key, value in (("data", data), ("experiment@_global_", experiment)):
        text, count = re.subn(rf"(?m)^(\s*- {re.escape(key)}:[ \t]*)[\w-]+", rf"\g<1>{value}", text)
        if count != 1:
            raise UserError(f"{path} needs one line `- {key}: ...` in its defaults list: restore it")
    write_text(path, text)


def set_drops(root: Path, drops: Sequence[str]) -> Config:
    """Write the list of drops to conf/dataset.yaml and params.yaml; no other parameter changes.

    Raises:
        UserError: params.yaml does not fit its schema with these drops; nothing is written then.
    """

    def change(raw: dict[str, Any]) -> None:
        raw["data"]["drops"] = list(drops)

    text, config = changed_params(root, change)
    dataset = root / "conf" / "dataset.yaml"
    write_text(dataset, with_drops(dataset.read_text(encoding="utf-8"), drops))
    write_text(root / "params.yaml", text)
    return config


def with_drops(text: str, drops: Sequence[str]) -> str:
    """The text of conf/dataset.yaml with another list of drops, which stands last in it."""
    head, _ = re.split(r"(?m)^drops:", text, maxsplit=1)
    return head + "drops:\n" + "".join(f"- {json.dumps(drop)}\n" for drop in drops)


def changed_params(root: Path, change: Callable[[dict[str, Any]], None]) -> tuple[str, Config]:
    """The text of params.yaml after `change`, and what it holds.

    It is not composed anew: that would lose what `crt compose OVERRIDES` chose.

    Raises:
        UserError: it does not fit its schema.
    """
    path = root / "params.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(raw)
    return params_text(raw, str(path))


def params_text(raw: Any, source: str) -> tuple[str, Config]:
    """The text of params.yaml with this content, as DVC's writer has it, and what it holds; `source` names it in errors.

    Raises:
        UserError: it does not fit its schema.
    """
    from omegaconf import OmegaConf

    config = validate(raw, source)
    return OmegaConf.to_yaml(OmegaConf.create(raw)), config


def load_params(root: Path) -> Config:
    """The validated params.yaml, which is composed first where it is missing."""
    if not (root / "params.yaml").exists():
        compose_params(root)
    return load(root / "params.yaml")


def _scalar(text: str) -> str:
    """A string as YAML that is read back as one: quoted where it looks like something else."""
    return yaml.safe_dump(text).splitlines()[0]
