"""Get a model from a place that DVC knows: an artifact of a repository by its version, or a remote's URL.

A folder in our format is fetched as the two files that make it, by name: nothing else in it, and no name from
there, reaches this disk.
"""

from pathlib import Path
from typing import Any

from crt.errors import UserError
from crt.files import replacing, replacing_file
from crt.references.locate import INFO, WEIGHTS


def get_artifact(repo: str, artifact: str, version: str | None, target: Path) -> None:
    """Get an artifact of a DVC repository (a path or a git URL) at a version, a tag `<artifact>@<version>`.

    Raises:
        UserError: No such repository, artifact or version (known versions are listed), or its data cannot be
            fetched.
    """
    from dvc.api import DVCFileSystem, artifacts_show
    from dvc.exceptions import ArtifactNotFoundError

    known = _versions(repo, artifact)
    name = f"artifact {artifact!r} of {repo}"
    if version not in known:
        if not known:
            raise UserError(f"{name} has no version: check the name, `gto show` lists what is registered")
        wanted = "needs a version" if version is None else f"has no version {version!r}"
        raise UserError(f"{name} {wanted}: choose one of {', '.join(known)}")
    try:
        found = artifacts_show(artifact, version=version, repo=repo)
        fs = DVCFileSystem(repo, rev=found["rev"], subrepos=True)
        _copy(fs, "/" + Path(found["path"]).as_posix(), target)
    except ArtifactNotFoundError:
        raise UserError(
            f"{name} has version {version}, but dvc.yaml does not name it there: "
            f"choose another of {', '.join(known)}"
        ) from None
    except UserError:
        raise
    except Exception as error:  # each storage raises its own library's errors
        raise UserError(
            f"{name} at {version} cannot be fetched ({_line(error)}): "
            "check that its data is pushed and that you may read it"
        ) from error


def get_url(url: str, root: Path, target: Path) -> None:
    """Get a file or a model folder from a URL that DVC has a plug-in for, as `dvc get-url` does.

    `remote://<name>/<path>` and settings of remotes are those of the repository at `root`.

    Raises:
        UserError: The URL is not there or cannot be read, or its plug-in is not installed.
    """
    from dvc.config import Config
    from dvc.fs import parse_external_url

    settings = root / ".dvc"
    try:
        config = Config(str(settings)) if settings.is_dir() else Config.from_cwd()
        fs, path = parse_external_url(url, config=config)
        if not fs.exists(path):
            raise UserError(f"{url} does not exist: check the address")
        _copy(fs, path, target)
    except UserError:
        raise
    except Exception as error:  # each storage raises its own library's errors
        raise UserError(
            f"{url} cannot be fetched ({_line(error)}): check the address and that you may read it"
        ) from error


def _copy(fs: Any, path: str, target: Path) -> None:
    """Copy a file, or the files of a model folder, to `target`, aside first."""
    if not fs.isdir(path):
        with replacing_file(target) as aside:
            _copy_file(fs, path, aside)
        return
    with replacing(target) as folder:
        for name in (INFO, WEIGHTS):
            source = f"{path.rstrip('/')}/{name}"
            if not fs.exists(source):
                raise UserError(
                    f"{path} holds no {name} that can be read: name a model folder or a file, "
                    "and check that its data is pushed"
                )
            _copy_file(fs, source, folder / name)


def _copy_file(fs: Any, source: str, to: Path) -> None:
    from dvc.fs.callbacks import TqdmCallback

    with TqdmCallback(desc=to.name, bytes=True, size=fs.info(source).get("size")) as callback:
        fs.get_file(source, str(to), callback=callback)


def _versions(repo: str, artifact: str) -> list[str]:
    """Versions of an artifact that are registered in the repository, oldest first."""
    from dvc.repo import Repo
    from gto.base import sort_versions
    from gto.constants import Action
    from gto.tag import find, parse_tag

    try:
        with Repo.open(repo, subrepos=True, uninitialized=True) as opened:
            found = find(action=Action.REGISTER, name=artifact, scm=opened.artifacts.scm)
    except Exception as error:  # DVC's, git's or the transport's own
        raise UserError(
            f"{repo} cannot be opened as a git repository ({_line(error)}): check the address"
        ) from error
    return [tag.version for tag in reversed(sort_versions(parse_tag(tag) for tag in found))]


def _line(error: Exception) -> str:
    text = str(error).strip() or str(error.__cause__ or "").strip() or type(error).__name__
    return " ".join(text.split())[:200]
