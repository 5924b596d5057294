"""`Project`: a repository with its choices and parameters, and DVC and git in it.

DVC is called as a command, so that this package stays light and behaves as a user's own `dvc add` does.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from crt import config
from crt.config import Config
from crt.errors import UserError
from crt.files import write_json, write_text
from crt.project.choice import Choice
from crt.project.conf import CHOICE, Composed, Conf
from crt.project.leftovers import remove_leftovers


class Project:
    """The repository at `root`.

    Raises:
        UserError: There is no dvc.yaml.
    """

    def __init__(self, root: Path = Path()) -> None:
        if not (root / "dvc.yaml").is_file():
            raise UserError(
                f"{root.resolve()} is not the root of a project (no dvc.yaml): "
                "go there, or name it with --root"
            )
        self.root = root
        self.conf = Conf(root / "conf")
        self.params_file = root / "params.yaml"
        self.choice_file = root / "conf" / CHOICE
        self.scratch = root / ".dvc" / "tmp" / "crt"  # what git and DVC do not see

    def dvc(self, *arguments: str, quiet: bool = True) -> str:
        """Run DVC; its standard output. Unless `quiet`, its progress shows on stderr.

        Raises:
            UserError: It failed; with its own words where it was quiet.
        """
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(
            command,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
        )
        if done.returncode:
            lines = (done.stderr or "").strip().splitlines()
            reason = next((line for line in lines if line.startswith("ERROR")), "its message stands above")
            raise UserError(
                f"`dvc {' '.join(arguments)}` failed in {self.root.resolve()} ({reason}): "
                "fix that and run again"
            )
        return done.stdout

    def git(self, *arguments: str) -> str:
        """Run git; its standard output.

        Raises:
            UserError: It failed, with its own words.
        """
        return self._git(*arguments).decode()

    def _git(self, *arguments: str) -> bytes:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True)
        if done.returncode:
            reason = " ".join(done.stderr.decode().split()) or f"status {done.returncode}"
            if "not a git repository" in reason:
                raise UserError(
                    f"{self.root.resolve()} is no git repository: releases are tags of one; run in a clone"
                )
            raise UserError(
                f"`git {' '.join(arguments)}` failed in {self.root.resolve()} ({reason}): "
                "fix that and run again"
            )
        return done.stdout

    def read_at(self, revision: str, name: str) -> str:
        """A file as it is in a commit, whether git keeps it or DVC.

        Raises:
            UserError: It is not there, or is not in DVC's cache.
        """
        try:
            return self.git("show", f"{revision}:./{name}")
        except UserError:
            from dvc.api import DVCFileSystem
            from dvc.exceptions import DvcException
            from dvc_data.index import DataIndexDirError

            try:
                text: str = DVCFileSystem(str(self.root.resolve()), rev=revision).read_text(
                    name, encoding="utf-8"
                )
            except (OSError, DvcException, DataIndexDirError) as error:
                raise UserError(f"{name} of {revision} cannot be read ({error}): `dvc pull`") from None
            return text

    @property
    def choice(self) -> Choice:
        """What was chosen: conf/choice.yaml. A copy of it can be changed and given to `choose`."""
        return self.conf.choice

    @property
    def params(self) -> Config:
        """The validated params.yaml, which is composed first where it is missing."""
        if not self.params_file.exists():
            self.choose(self.choice)
        return config.load(self.params_file)

    def composed(
        self, overrides: Sequence[str] = (), choice: Choice | None = None
    ) -> tuple[Composed, Config]:
        """What conf/ composes to with Hydra's overrides and that choice (None: the present one), checked.

        Raises:
            UserError: An option or key that does not exist, or a value that does not fit the schema.
        """
        found = self.conf.compose(choice, overrides)
        checked = config.validate(found.values, "conf/ (with conf/choice.yaml)")
        if checked.student.args_for != checked.student.arch:  # it is no option's network
            from crt.models.build import check_arch  # seconds to import

            check_arch(checked.student.arch)  # else it would fail only after the teacher was trained
        return found, checked

    def choose(self, choice: Choice) -> Config:
        """Write conf/choice.yaml and params.yaml, and remove what stages left that no longer exist.

        Both are written only when everything fits. After a kill between the two, the next command composes
        params.yaml.

        Raises:
            UserError: See `composed`.
        """
        found, checked = self.composed(choice=choice)
        if choice != self.choice:  # else the comments that people wrote there would go
            write_text(self.choice_file, choice.text())
        if not self.params_file.exists() or self.params_file.read_text(encoding="utf-8") != found.text:
            write_text(self.params_file, found.text)
        write_json(self._memory, {path.name: _digest(path) for path in (self.params_file, self.choice_file)})
        remove_leftovers(self.root, found.values)
        return checked

    def is_ours(self, path: Path) -> bool:
        """Whether params.yaml or choice.yaml is as `choose` left it, and not as DVC, git or a person did."""
        try:
            known: Any = json.loads(self._memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(known.get(path.name) == _digest(path))

    @property
    def _memory(self) -> Path:
        return self.scratch / "written.json"

    def read_params(self) -> dict[str, Any]:
        """The content of params.yaml, unchecked.

        Raises:
            UserError: It is no YAML mapping.
        """
        try:
            found = yaml.safe_load(self.params_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.params_file} is not YAML ({str(error).splitlines()[0]}): "
                "delete it, then run `crt compose`"
            ) from None
        if not isinstance(found, dict):
            raise UserError(f"{self.params_file} is empty or no mapping: delete it, then run `crt compose`")
        return found

    @contextmanager
    def committed_conf(self) -> Iterator[Conf | None]:
        """conf/ as it is in the last commit; None: there is none with a choice.yaml."""
        try:
            archive = self._git("archive", "--format=tar", "HEAD", "conf")
        except UserError:
            yield None
            return
        with tempfile.TemporaryDirectory() as place:
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                # Python before 3.11.4 has no filters.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(place)  # noqa: S202
            found = Conf(Path(place) / "conf")
            yield found if (found.folder / CHOICE).is_file() else None

    def is_merged(self) -> bool:
        """Whether HEAD is a merge, and params.yaml is as it left it."""
        try:
            self.git("rev-parse", "--verify", "-q", "HEAD^2")
            return self.git("show", "HEAD:./params.yaml") == self.params_file.read_text(encoding="utf-8")
        except UserError:
            return False


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
