"""Classes that are renamed, merged and split, in class folders, archives and tables of labels."""

import json
import shutil
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from data_repo import assert_composed, commit, delivery, dvc_in_process, run, state
from PIL import Image

from crt.commands.ingest import ingest
from crt.commands.pin import pin
from crt.commands.relabel import relabel
from crt.config import load
from crt.drops.layout import read_classes, read_drop
from crt.errors import UserError
from crt.project import Project
from crt.project.data import unrecorded_files

DIGITS = [str(digit) for digit in range(10)]


def counts(repo) -> dict[str, Counter]:
    """How many images of each class there are in the test set and in each drop; None: without a label."""
    assert_composed(repo)
    params = load(repo / "params.yaml")
    classes = read_classes(repo / "data", params.data.num_classes)
    found = {}
    for place in ("test", *(f"train/{drop}" for drop in params.data.drops)):
        drop = read_drop(repo / "data" / place, classes)
        labels = [file.label for file in drop.files]
        labels += [label for archive in drop.archives for label in archive.labels.tolist()]
        found[place] = Counter(classes[label] if label >= 0 else None for label in labels)
    return found


def pictures(folder) -> Counter:
    return Counter(np.asarray(Image.open(path)).tobytes() for path in folder.rglob("*.png"))


@pytest.fixture(scope="module")
def template(pulled, tmp_path_factory):
    """The digits, with a drop of class folders and an unlabeled one.

    The class folders hold three 3s and three 7s, files of the same names.
    """
    folder = tmp_path_factory.mktemp("relabel")
    repo = Path(shutil.copytree(pulled, folder / "repo"))
    source, flat = delivery(folder / "in"), folder / "flat"
    flat.mkdir()
    for path in source.rglob("*.png"):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    with mock.patch.object(Project, "dvc", dvc_in_process):
        ingest(Project(repo), source, "folders")
        ingest(Project(repo), flat, "flat")
    commit(repo)
    return repo


@pytest.fixture
def grown(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "repo"))


def test_a_class_gets_another_name(grown, capsys):
    before = counts(grown)
    images = state(grown)["data/test/digits.npz"]
    relabel(Project(grown), ["3=three"])
    assert read_classes(grown / "data", 10) == [*DIGITS[:3], "three", *DIGITS[4:]]
    for place, found in counts(grown).items():
        assert found == Counter({("three" if name == "3" else name): n for name, n in before[place].items()})
    assert state(grown)["data/test/digits.npz"] == images
    assert sorted(path.name for path in (grown / "data/train/folders").iterdir()) == ["7", "three"]
    assert not unrecorded_files(Project(grown))
    total = sum(found["3"] for found in before.values())
    assert f"{total} image(s) of 3 are of three now" in capsys.readouterr().out


def test_a_class_is_merged_into_another_and_no_image_is_lost(grown):
    before, images = counts(grown), pictures(grown / "data")
    relabel(Project(grown), ["3=7"])
    assert load(grown / "params.yaml").data.num_classes == 9
    for place, found in counts(grown).items():
        assert found["7"] == before[place]["3"] + before[place]["7"]
        assert found["9"] == before[place]["9"]
        assert "3" not in found
    assert pictures(grown / "data") == images
    assert not unrecorded_files(Project(grown))


def test_a_class_is_split_by_a_table(grown, tmp_path):
    before = counts(grown)
    labels = np.load(grown / "data/test/digits.npz")["labels"]
    tested = int(np.flatnonzero(labels == 3)[0])
    table = tmp_path / "split.csv"
    table.write_text(
        f"file;label\nfolders/3/0.png;curly three\ntest/digits.npz#{tested};curly three\n3-1.png;3\n"
    )
    relabel(Project(grown), [str(table)])
    found = counts(grown)
    assert load(grown / "params.yaml").data.num_classes == 11
    assert found["test"] - before["test"] == Counter({"curly three": 1})
    assert found["train/folders"] == Counter({"7": 3, "3": 2, "curly three": 1})
    assert found["train/flat"] == Counter({None: 5, "3": 1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("eleven=3", "there is no class 'eleven' to rename: classes.txt has 0, 1"),
        ("eleven", "eleven is no file, and no change OLD=NEW"),
        ("3=a/b", "the command names the class 'a/b', which cannot be a folder"),
        ("missing.png;3", "line 2: 'missing.png' is no image of data/, or several"),
        ("0.png;3", "line 2: '0.png' is no image of data/, or several"),
        ("folders/3/0.png;curly", "the class curly would have no test image: label images of data/test too"),
    ],
)
def test_what_cannot_be_done_changes_nothing(grown, tmp_path, change, said):
    if ";" in change:
        table = tmp_path / "table.csv"
        table.write_text(f"file;label\n{change}\n")
        change = str(table)
    before = state(grown)
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        relabel(Project(grown), [change])
    assert state(grown) == before


@pytest.mark.slow
def test_all_drops_are_needed(grown):
    shutil.rmtree(grown / "data/train/folders")
    with pytest.raises(UserError, match=r"train/folders is missing, .*: `dvc pull data.dvc`"):
        relabel(Project(grown), ["3=three"])
    run(grown, "dvc", "checkout", "-q", "data.dvc")
    relabel(Project(grown), ["3=three"])


@pytest.mark.slow
def test_a_killed_run_is_ended_by_the_same_command(grown, monkeypatch):
    wanted = counts(grown)
    real = Project.dvc

    def killed(self, *arguments, **options):
        if arguments[0] == "add":
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(Project, "dvc", killed)
    for change in ("3=7", "4=four"):
        with pytest.raises(KeyboardInterrupt):
            relabel(Project(grown), [change])
        monkeypatch.setattr(Project, "dvc", real)
        relabel(Project(grown), [change])
        monkeypatch.setattr(Project, "dvc", killed)
    found = counts(grown)
    assert found["test"]["7"] == wanted["test"]["3"] + wanted["test"]["7"]
    assert found["test"]["four"] == wanted["test"]["4"]
    assert not unrecorded_files(Project(grown))


@pytest.mark.slow
def test_a_release_of_other_classes_is_no_longer_pinned(grown, capsys):
    (grown / "results/prepare").mkdir(parents=True, exist_ok=True)
    (grown / "results/prepare/test.json").write_text(json.dumps({"classes": dict.fromkeys(DIGITS, 36)}))
    commit(grown)
    by = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    run(grown, "git", *by, "tag", "-a", "student@v1.0.0", "-m", "it")
    pin(Project(grown), "v1.0.0")
    relabel(Project(grown), ["3=three"])
    assert (
        "student@v1.0.0 is no longer pinned: the classes are not those of v1.0.0" in capsys.readouterr().out
    )
    assert "pinned" not in yaml.safe_load((grown / "conf/choice.yaml").read_text())
