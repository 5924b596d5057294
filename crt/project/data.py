"""data/ and its record, data.dvc."""

import json
from typing import Any

import yaml

from crt.errors import UserError
from crt.files import write_text
from crt.project.repository import Project

SAMPLE_REMOTE = "sample"  # lies in the repository and holds the digits only


def unrecorded_files(project: Project) -> list[str]:
    """Files under data/ that DVC's cache does not have as they are: replacing data/ would lose them."""
    root = project.root
    files = [path for path in (root / "data").rglob("*") if path.is_file()]
    if not files:
        return []
    if not (root / "data.dvc").exists():
        return sorted(path.relative_to(root).as_posix() for path in files)
    status = json.loads(project.dvc("data", "status", "--granular", "--json"))
    changes = status.get("uncommitted", {})
    paths = [path for kind, found in changes.items() if kind != "renamed" for path in found]
    paths += [item["new"] for item in changes.get("renamed", [])] + status.get("not_in_cache", [])
    # What is deleted, or was never pulled, cannot be lost.
    return sorted({path for path in paths if path.startswith("data/") and (root / path).is_file()})


def recorded_drops(project: Project) -> list[str]:
    """The drops that data.dvc records, whether pulled or not.

    Raises:
        UserError: Its list of files was never pulled.
    """
    try:
        found = json.loads(project.dvc("list", ".", "data/train", "--dvc-only", "--json"))
    except UserError as error:
        raise UserError(
            f"what data.dvc records cannot be read: `dvc pull data.dvc`, then run again ({error})"
        ) from None
    return [item["path"] for item in found]


def remote_of_data(project: Project) -> str | None:
    """The DVC remote that data/ belongs to; None: the default remote."""
    remote: str | None = _record(project)["outs"][0].get("remote")
    return remote


def set_remote(project: Project, remote: str | None) -> None:
    """Name the DVC remote that data/ belongs to, in data.dvc; None: the default remote."""
    record = _record(project)
    out = record["outs"][0]
    if out.get("remote") == remote:
        return
    out.pop("remote", None)
    if remote is not None:
        out["remote"] = remote
    write_text(project.root / "data.dvc", yaml.safe_dump(record, sort_keys=False))


def leave_sample_remote(project: Project) -> None:
    """Let data/ belong to the default remote from now on, if it is the sample: what users add is not for git.

    What the sample remote has is fetched before, so that `dvc push` can push the whole of data/.
    """
    if remote_of_data(project) == SAMPLE_REMOTE:
        project.dvc("fetch", "data.dvc")
        set_remote(project, None)


def has_default_remote(project: Project) -> bool:
    """Whether DVC has a remote that `dvc push` uses by itself."""
    return "(default)" in project.dvc("remote", "list")


def show_next(project: Project) -> None:
    """Print what is left to do once data/ has changed."""
    print("next: `dvc repro`, then `git commit` data.dvc, conf/ and params.yaml with the results")
    if remote_of_data(project) is None and not has_default_remote(project):
        print("data/ is on this machine only: `dvc remote add -d NAME URL` and `dvc push` share it")


def _record(project: Project) -> Any:
    return yaml.safe_load((project.root / "data.dvc").read_text(encoding="utf-8"))
