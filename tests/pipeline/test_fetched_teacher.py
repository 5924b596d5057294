"""Fetching teachers from real places.

They are a second git and DVC repository, an SSH remote, a web server and this repository.
"""

import getpass
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from dvc.repo import Repo
from http_server import serve, server
from model_folders import write_model
from published_files import Front, digits_teacher, save_cohen
from safetensors.torch import load_file

from crt.errors import UserError
from crt.models.checkpoint import load_info, load_model
from crt.models.cifar_resnet import CifarResNet
from crt.references.fetch import sha256_of
from crt.references.locate import locate, parse

DIGITS = [str(digit) for digit in range(10)]


def command(*words: str, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def released(tmp_path_factory) -> Path:
    """A small model folder."""
    folder = tmp_path_factory.mktemp("released") / "teacher"
    write_model(folder, mean=[0.0], std=[1.0])
    return folder


@pytest.fixture(scope="session")
def registry(tmp_path_factory, released) -> Path:
    """Another git and DVC repository: its artifact `teacher` in two versions, the data in its remote only."""
    root = tmp_path_factory.mktemp("registry") / "repo"
    root.mkdir()
    command("git", "init", "-q", "-b", "main", cwd=root)
    command("git", "config", "user.name", "tester", cwd=root)
    command("git", "config", "user.email", "tester@example.org", cwd=root)
    Repo.init(str(root)).close()
    store = root.parent / "store"
    (root / ".dvc/config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {store}\n"
    )
    (root / "dvc.yaml").write_text("artifacts:\n  teacher:\n    path: models/teacher\n    type: model\n")
    for version, sigma in (("v1.0.0", 0.25), ("v1.1.0", 0.5)):
        shutil.copytree(released, root / "models/teacher", dirs_exist_ok=True)
        text = (root / "models/teacher/model.json").read_text()
        (root / "models/teacher/model.json").write_text(text.replace('"sigma": 0.25', f'"sigma": {sigma}'))
        with Repo(str(root)) as repo:
            repo.add(str(root / "models/teacher"))
            repo.push()
        command("git", "add", "-A", cwd=root)
        command("git", "commit", "-qm", version, cwd=root)
        command("git", "tag", "-a", f"teacher@{version}", "-m", version, cwd=root)
    command("git", "tag", "-a", "teacher#prod#1", "-m", "a stage, which moves", cwd=root)
    shutil.rmtree(root / ".dvc/cache")
    shutil.rmtree(root / "models/teacher")
    return root


class TestRegistry:
    def test_each_version_is_its_own(self, registry, released, tmp_path):
        for version, sigma in (("v1.0.0", 0.25), ("v1.1.0", 0.5)):
            folder = locate(parse(f"registry:{registry}:teacher@{version}"), tmp_path, tmp_path / "work")
            assert load_info(folder).sigma == sigma
            assert (folder / "model.safetensors").read_bytes() == (
                released / "model.safetensors"
            ).read_bytes()
            assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]

    def test_a_git_url(self, registry, tmp_path):
        folder = locate(parse(f"registry:file://{registry}:teacher@v1.0.0"), tmp_path, tmp_path / "work")
        assert load_info(folder).sigma == 0.25

    def test_this_repository_and_a_pin(self, registry, released, tmp_path):
        pin = sha256_of(released / "model.safetensors")
        folder = locate(parse("registry:teacher@v1.1.0", pin), registry, tmp_path / "work")
        assert load_info(folder).sigma == 0.5
        with pytest.raises(UserError, match=f"{pin} instead of {'0' * 64}"):
            locate(parse("registry:teacher@v1.1.0", "0" * 64), registry, tmp_path / "other")
        assert not list((tmp_path / "other").iterdir())

    @pytest.mark.parametrize(
        ("ref", "said"),
        [
            ("teacher@v9.9.9", r"no version 'v9\.9\.9': choose one of v1\.0\.0, v1\.1\.0$"),
            ("teacher", r"needs a version: choose one of v1\.0\.0, v1\.1\.0$"),
            ("nothing@v1.0.0", "has no version: check the name"),
            ("/nowhere/at/all:teacher@v1.0.0", "/nowhere/at/all cannot be opened"),
        ],
    )
    def test_what_is_missing_is_said(self, registry, tmp_path, ref, said):
        with pytest.raises(UserError, match=said) as error:
            locate(parse(f"registry:{ref}"), registry, tmp_path / "work")
        assert "\n" not in str(error.value)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_data_that_was_never_pushed(self, registry, tmp_path):
        copy = tmp_path / "repo"
        shutil.copytree(registry, copy)
        config = copy / ".dvc/config"
        config.write_text(config.read_text().replace("/store", "/empty"))
        command("git", "commit", "-qam", "another remote", cwd=copy)
        command("git", "tag", "-a", "teacher@v2.0.0", "-m", "x", cwd=copy)
        with pytest.raises(UserError, match="check that its data is pushed"):
            locate(parse("registry:teacher@v2.0.0"), copy, tmp_path / "work")
        assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


@pytest.fixture
def with_remote(ssh, released, tmp_path) -> Path:
    """A DVC repository with an SSH remote `place` that holds a model folder and a file."""
    port, key = ssh
    there, root = tmp_path / "there", tmp_path / "repo"
    shutil.copytree(released, there / "teacher")
    shutil.copy(released / "model.safetensors", there / "weights.safetensors")
    (there / "teacher/evil.sh").write_text("x")
    root.mkdir()
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text(f"['remote \"place\"']\n    url = ssh://127.0.0.1:{port}{there}\n")
    login = f"['remote \"place\"']\n    user = {getpass.getuser()}\n    keyfile = {key}\n"
    (root / ".dvc/config.local").write_text(login)
    return root


class TestSsh:
    def test_a_model_folder(self, with_remote, released, tmp_path):
        pin = sha256_of(released / "model.safetensors")
        folder = locate(parse("dvc:remote://place/teacher", pin), with_remote, tmp_path / "work")
        assert load_info(folder) == load_info(released)
        assert sha256_of(folder / "model.safetensors") == pin
        assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]

    def test_a_file(self, with_remote, released, tmp_path):
        pin = sha256_of(released / "model.safetensors")
        file = locate(parse("dvc:remote://place/weights.safetensors", pin), with_remote, tmp_path / "work")
        assert load_file(file).keys() == load_file(released / "model.safetensors").keys()

    def test_a_wrong_hash_keeps_nothing(self, with_remote, tmp_path):
        with pytest.raises(UserError, match=f"instead of {'0' * 64}"):
            locate(parse("dvc:remote://place/teacher", "0" * 64), with_remote, tmp_path / "work")
        assert not list((tmp_path / "work").iterdir())

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("remote://place/nothing", "does not exist"),
            ("remote://elsewhere/teacher", "elsewhere"),
            ("remote://place", "holds no model.json"),
        ],
    )
    def test_what_is_missing_is_said(self, with_remote, tmp_path, url, said):
        with pytest.raises(UserError, match=said) as error:
            locate(parse(f"dvc:{url}", "0" * 64), with_remote, tmp_path / "work")
        assert "\n" not in str(error.value)
        assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]

    def test_a_server_that_is_not_there(self, ssh, tmp_path):
        with pytest.raises(UserError, match=r"cannot be fetched \(.*(refused|Connect call failed)"):
            locate(parse("dvc:ssh://127.0.0.1:1/teacher", "0" * 64), tmp_path, tmp_path / "work")


@pytest.fixture(scope="session")
def prepared(fresh, tmp_path_factory):
    """A copy of the project in which nothing but the teacher's drop is prepared."""
    project = fresh.copy(tmp_path_factory.mktemp("prepared") / "repo")
    for name in ("prepared", "models", "results", "certificates", "report", ".work"):
        shutil.rmtree(project.root / name, ignore_errors=True)
    (project.root / "dvc.lock").unlink(missing_ok=True)
    project.run("dvc", "repro", "prepare@2025-01")
    return project


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A CIFAR ResNet trained on noisy digits, written as Cohen et al.'s code does."""
    return save_cohen(tmp_path_factory.mktemp("published") / "checkpoint.pth.tar", digits_teacher())


@pytest.mark.slow
def test_a_published_checkpoint_becomes_the_teacher(prepared, checkpoint, tmp_path):
    project = prepared.copy(tmp_path / "repo")
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    outputs = [project.root / name for name in ("models/teacher", "results/teacher.json")]

    def fetch(*settings: str, check: bool = True):
        project.run("crt", "compose", "+experiment=smoke", "teacher=fetch", *settings)
        return project.run("dvc", "repro", "fetch_teacher@teacher", check=check)

    with server() as web:
        web.routes["/checkpoint.pth.tar"] = serve(checkpoint.read_bytes())
        ref = f"teacher.ref={web.url}/checkpoint.pth.tar"

        # What the file does not tell is asked for by name. Nothing is left but the download, which is not
        # repeated.
        failed = fetch(ref, f"teacher.sha256={sha256}", check=False)
        assert failed.returncode != 0
        assert "set teacher.sigma (its first BatchNorm's statistics fit 0.25 best)" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert not any(path.exists() for path in outputs)
        asked = len(web.requests)
        assert asked == 1

        done = fetch(ref, f"teacher.sha256={sha256}", "teacher.sigma=0.25")
        assert len(web.requests) == asked
    for said in ("recognized cifar_resnet20", "normalize, MNIST", "trained with sigma 0.25", "10 classes"):
        assert said in done.stderr
    model, info = load_model(outputs[0])
    assert (info.arch, info.sigma, info.spec.classes, info.method) == (
        "cifar_resnet20",
        0.25,
        tuple(DIGITS),
        "published",
    )
    assert info.mean == pytest.approx([0.1307])
    assert info.std == pytest.approx([0.3081])
    assert info.source["sha256"] == sha256
    source = torch.nn.Sequential(Front((0.1307,), (0.3081,)), CifarResNet(20, 10, 1)).eval()
    source.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    images = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(source(images), model(images), atol=1e-5)
    results = json.loads(outputs[1].read_text())
    assert results["noisy_accuracy"] > 0.5
    assert results["normalization"] == "normalize, MNIST"
    assert results["evidence"]["normalize, MNIST"]["sigma"] == 0.25
    assert results["noisy_images"] == 479
    assert not (project.root / "results/teacher/training.tsv").exists(), "it was not trained here"
    assert not list((project.root / ".work").glob("*"))

    assert project.stages_run("dvc", "repro", "fetch_teacher@teacher") == []

    # Released, it is a teacher by its version, in this repository and while DVC runs.
    text = (project.root / "dvc.yaml").read_text()
    (project.root / "dvc.yaml").write_text(
        text + "  robust-teacher:\n    path: models/teacher\n    type: model\n"
    )
    project.commit("a teacher")
    project.run("git", "tag", "-a", "robust-teacher@v1.0.0", "-m", "release")
    fetch("teacher.ref=registry:robust-teacher@v1.0.0", "teacher.sha256=null")  # choices stay
    assert load_info(outputs[0]).source["ref"] == "registry:robust-teacher@v1.0.0"
    assert json.loads(outputs[1].read_text())["noisy_accuracy"] == results["noisy_accuracy"]
