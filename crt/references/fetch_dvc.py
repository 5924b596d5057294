"""Get a model from a place that DVC knows: an artifact of a repository by its version, or a remote's URL.

A folder in our format is fetched as the two files that make it, by name: nothing else in it, and no name from
there, reaches this disk.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crt.errors import UserError
from crt.files import replacing, replacing_file
from crt.references.locate import INFO, WEIGHTS


class Released:
    """A version of an artifact of a DVC repository: a GTO tag `<artifact>@<version>`, and its commit's files.

    Args:
        repo: The repository's path or git URL.
        artifact: The artifact's name in dvc.yaml.
        version: The version.

    Attributes:
        version: The version.
        date: The day of the tag, `2025-03-31`.
        facts: What the tag's message says.

    Raises:
        UserError: No such repository, artifact or version (known versions are listed).
    """

    def __init__(self, repo: str, artifact: str, version: str | None) -> None:
        from dvc.api import DVCFileSystem, artifacts_show
        from dvc.exceptions import ArtifactNotFoundError

        tags = _tags(repo, artifact)
        name = f"artifact {artifact!r} of {repo}"
        if version not in tags:
            if not tags:
                raise UserError(f"{name} has no version: check the name, `gto show` lists what is registered")
            wanted = "needs a version" if version is None else f"has no version {version!r}"
            raise UserError(f"{name} {wanted}: choose one of {', '.join(tags)}")
        tag = tags[version]
        self.version, self.date = version, tag.created_at.date().isoformat()
        self.facts = facts_of(tag.tag.message)
        self._name = f"{name} at {version}"
        with self._explaining():
            try:
                found = artifacts_show(artifact, version=version, repo=repo)
            except ArtifactNotFoundError:
                raise UserError(
                    f"{name} has version {version}, but dvc.yaml does not name it there: "
                    f"choose another of {', '.join(tags)}"
                ) from None
            self._path = "/" + Path(found["path"]).as_posix()
            self._files = DVCFileSystem(repo, rev=found["rev"], subrepos=True)

    def copy(self, target: Path) -> None:
        """Copy the artifact, a file or a model folder, to `target`.

        Raises:
            UserError: Its data cannot be had.
        """
        with self._explaining():
            _copy(self._files, self._path, target)

    def copy_beside(self, name: str, target: Path, most: int) -> bool:
        """Copy a file of the release's commit, which holds the artifact models/student; whether it is there.

        Args:
            name: The file, such as certificates/student.tsv.
            target: Where to.
            most: The largest size, bytes.

        Raises:
            UserError: Its data cannot be had, or is larger.
        """
        source = f"{self._path.removesuffix('/models/student')}/{name}"
        with self._explaining():
            if not self._files.exists(source):
                return False
            size = self._files.info(source).get("size") or 0
            if size <= most:
                with replacing_file(target) as aside:
                    _copy_file(self._files, source, aside)
                    size = aside.stat().st_size
            if size > most:
                target.unlink(missing_ok=True)
                raise UserError(
                    f"{name} of {self._name} has {size} bytes, more than {most}: choose another release"
                )
        return True

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each storage raises its own library's errors
            raise UserError(
                f"{self._name} cannot be fetched ({_line(error)}): "
                "check that its data is pushed and that you may read it"
            ) from error


def facts_of(message: str) -> dict[str, Any]:
    """The JSON below the first line of a release tag's message; empty for a tag that was made by hand."""
    _, _, body = message.partition("\n")
    try:
        found = json.loads(body.partition("-----BEGIN")[0])  # a signature may follow
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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


def _tags(repo: str, artifact: str) -> dict[str, Any]:
    """GTO's tags of an artifact's versions that are registered in the repository, the oldest first."""
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
    return {tag.version: tag for tag in reversed(sort_versions(parse_tag(tag) for tag in found))}


def _line(error: Exception) -> str:
    text = str(error).strip() or str(error.__cause__ or "").strip() or type(error).__name__
    return " ".join(text.split())[:200]
