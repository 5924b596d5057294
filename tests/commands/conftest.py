"""Real git + DVC repositories with this project's settings and sample, for the commands that change data/."""

import os
import shutil
from pathlib import Path

import pytest
from data_repo import commit, dvc_in_process, run

from crt.commands.compose import compose
from crt.project import Project

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def unpulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository right after a clone: nothing pulled."""
    os.environ["DVC_NO_ANALYTICS"] = "1"
    root = tmp_path_factory.mktemp("data_repo") / "repo"
    root.mkdir()
    for name in ("conf", "sample"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("dvc.yaml", "data.dvc", ".dvcignore", ".gitignore", ".dvc/config"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    run(root, "git", "init", "-q")
    compose(Project(root))
    commit(root)
    return root


@pytest.fixture(scope="session")
def pulled(unpulled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data_repo_pulled") / "repo"
    shutil.copytree(unpulled, root)
    run(root, "dvc", "pull", "-q", "data.dvc")
    return root


@pytest.fixture
def clone(unpulled: Path, tmp_path: Path) -> Path:
    """A repository with nothing pulled, to be changed."""
    return Path(shutil.copytree(unpulled, tmp_path / "repo"))


@pytest.fixture
def repo(pulled: Path, tmp_path: Path) -> Path:
    """A repository with the digits in data/, to be changed."""
    return Path(shutil.copytree(pulled, tmp_path / "repo"))


@pytest.fixture(autouse=True)
def fast_dvc(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The commands call DVC in this process, except where a test is marked to call it as they really do."""
    if request.node.get_closest_marker("real_dvc") is None:
        monkeypatch.setattr(Project, "dvc", dvc_in_process)
