import shutil
import struct

import numpy as np
import pytest
import yaml
from data_repo import assert_composed, choice, commit, delivery, listed_drops, record, run, state

import crt.commands.get_data as command
import crt.project.repository as repository
from crt.commands.compose import compose
from crt.commands.get_data import get_data
from crt.config import load
from crt.errors import UserError
from crt.project import Project

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # DVC's own


def fashion_mnist(folder):
    folder.mkdir()
    for stem, count in (("train", 30), ("t10k", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, count, 28, 28) + images.tobytes()
        )
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 0x801, count) + labels.tobytes()
        )
    return folder


@pytest.mark.slow
def test_digits_are_what_the_repository_records(repo):
    before = state(repo)
    get_data(Project(repo), "digits")
    assert state(repo) == before
    assert run(repo, "git", "status", "--porcelain") == ""
    assert record(repo)["remote"] == "sample"


@pytest.mark.real_dvc
def test_another_set_and_back(repo, tmp_path, capsys):
    before = state(repo)
    for part in ("test", "train/2025-01", "train/2025-02"):
        (repo / "prepared" / part).mkdir(parents=True)
    (repo / "results" / "prepare").mkdir(parents=True)
    for name in ("test", "2025-01"):
        (repo / "results" / "prepare" / f"{name}.json").write_text("{}")
    get_data(Project(repo), "fashion_mnist", origin=fashion_mnist(tmp_path / "idx"))
    assert list((repo / "prepared").glob("*/*")) == []
    assert [path.name for path in (repo / "results" / "prepare").iterdir()] == ["test.json"]
    (repo / "results" / "prepare" / "test.json").unlink()
    shutil.rmtree(repo / "prepared")
    assert "fashion_mnist: 10 classes, 1 channel(s), 28x28 pixels, drops base" in capsys.readouterr().out
    config = load(repo / "params.yaml")
    assert (config.data.name, config.data.image_size, config.data.drops) == ("fashion_mnist", 28, ["base"])
    assert choice(repo)["defaults"] == [{"override /preset": "fashion_mnist"}]
    assert config.teacher.drop == "base"
    assert_composed(repo)
    # Only the sample belongs to the sample's remote, which is in git.
    assert "remote" not in record(repo)
    assert run(repo, "dvc", "data", "status", "--json").count("uncommitted") == 0
    get_data(Project(repo), "digits")
    assert yaml.safe_load((repo / "data.dvc").read_text()) == yaml.safe_load(before["data.dvc"])
    del before["data.dvc"]
    after = state(repo)
    del after["data.dvc"]
    assert after == before


def test_a_folder_gets_the_folder_preset_or_a_named_one(repo, tmp_path, monkeypatch):
    monkeypatch.setattr(Project, "dvc", lambda *_, **__: "")
    monkeypatch.setattr(command, "unrecorded_files", lambda _: [])
    get_data(Project(repo), f"folder:{delivery(tmp_path / 'my set!')}")
    config = load(repo / "params.yaml")
    assert (config.preset, config.data.name, config.data.resize) == ("folder", "my-set", "crop")
    assert (config.data.num_classes, config.data.channels, config.data.image_size) == (2, 1, 8)
    assert (repo / "data" / "classes.txt").read_text() == "3\n7\n"
    get_data(Project(repo), f"folder:{tmp_path / 'my set!'}", name="imagenet", image_size=16)
    config = load(repo / "params.yaml")
    assert (config.preset, config.data.name, config.data.augment.crop_area) == ("imagenet", "imagenet", 0.08)
    assert config.data.image_size == 16, "a fact, which the preset cannot change"


def test_works_with_nothing_pulled(clone, tmp_path):
    get_data(Project(clone), f"folder:{delivery(tmp_path / 'set')}")
    assert listed_drops(clone) == ["base"]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["added", "modified", "never recorded", "lost from the cache"])
def test_data_that_dvc_does_not_have_is_not_replaced(repo, tmp_path, change):
    name = "data/train/2025-01/new.png" if change == "added" else "data/test/digits.npz"
    if change == "never recorded":
        (repo / "data.dvc").unlink()
    elif change == "lost from the cache":
        shutil.rmtree(repo / ".dvc" / "cache" / "files")
    else:
        (repo / name).write_text("precious")
    before = state(repo)
    with pytest.raises(
        UserError, match=r"data/ holds what DVC does not have \(.*\): keep it with `dvc add data`"
    ) as error:
        get_data(Project(repo), "fashion_mnist", origin=fashion_mnist(tmp_path / "idx"))
    assert name in str(error.value)
    assert state(repo) == before
    if change == "modified":
        run(repo, "dvc", "add", "data")
        get_data(Project(repo), "fashion_mnist", origin=tmp_path / "idx")
        assert listed_drops(repo) == ["base"]


def test_deleted_files_are_no_loss(repo, tmp_path):
    shutil.rmtree(repo / "data" / "train" / "2025-02")
    get_data(Project(repo), "digits")
    assert run(repo, "git", "status", "--porcelain") == ""


class Kill(BaseException):
    """Ends a command in the middle."""


@pytest.mark.slow
def test_after_kills_the_same_command_ends_what_was_begun(repo, tmp_path, monkeypatch):
    source = f"folder:{delivery(tmp_path / 'set')}"

    def kill(*_, **__):
        raise Kill

    for where, step in (
        (Project, "dvc"),
        (Project, "choose"),
        (repository, "remove_leftovers"),
    ):
        with monkeypatch.context() as patch:  # each run comes one step further
            patch.setattr(where, step, kill)
            with pytest.raises(Kill):
                get_data(Project(repo), source)
        (repo / "data.partial").mkdir(exist_ok=True)  # as a kill during the writing leaves it
        (repo / "data.partial" / "half").write_text("x")
    get_data(Project(repo), source)
    assert listed_drops(repo) == ["base"]
    assert load(repo / "params.yaml").data.name == "set"
    assert "remote" not in record(repo)
    assert run(repo, "dvc", "status", "-q", "data.dvc") == ""
    assert sorted(path.name for path in repo.glob("data*")) == ["data", "data.dvc"]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mnist", {}, "'mnist' is no known data set: choose digits"),
        ("digits", {"origin": "x"}, "--from does not belong to 'digits'"),
        ("cifar10", {"name": "x"}, "can be given to folder:PATH only"),
        ("folder:nowhere", {}, "nowhere is missing"),
        ("folder:", {}, "write folder:PATH"),
        ("cifar10", {"origin": "nowhere"}, "nowhere cannot be read"),
    ],
)
def test_wrong_requests_change_nothing(repo, source, options, message):
    before = state(repo)
    if "origin" in options:
        options = {"origin": repo / options["origin"]}
    with pytest.raises(UserError, match=message):
        get_data(Project(repo), source, **options)
    assert state(repo) == before


def test_a_source_inside_data_is_refused(repo):
    with pytest.raises(UserError, match="lies in data/"):
        get_data(Project(repo), f"folder:{repo / 'data' / 'train'}")


@pytest.mark.slow
def test_settings_that_would_not_fit_are_found_before_anything_changes(repo, tmp_path):
    compose(Project(repo), ["teacher.drop=2025-02"])
    commit(repo)
    before = state(repo)
    with pytest.raises(UserError, match=r"teacher.drop is '2025-02'"):
        get_data(Project(repo), f"folder:{delivery(tmp_path / 'set')}")
    assert state(repo) == before


@pytest.mark.slow
def test_downloads_are_checked_and_a_failure_names_the_way_out(tmp_path, monkeypatch):
    import torchvision.datasets.utils

    asked = []

    def fail(url, root, filename, md5):
        asked.append((filename, md5))
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fail)
    for download in (command._download_cifar10, command._download_fashion_mnist):
        with pytest.raises(UserError, match=r"cannot be downloaded \(no network\): .* --from"):
            download(tmp_path)
    assert asked == [
        ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
        ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    ]
