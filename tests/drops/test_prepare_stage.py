"""The script stages/prepare.py. Most tests run it in this process, which has imported what it needs."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from model_folders import write_model
from raw_drops import CLASSES, GRAY8, class_folders, pixels, write_image

from crt.data.store import open_store, open_validation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml, a training drop and a test set; stages run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "stages")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"].update(num_classes=3, channels=1, image_size=8, drops=["a"], resize="none")
    params["teacher"].update(drop="a", trained=["a"])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    class_folders(tmp_path / "data" / "train" / "a", 3)
    class_folders(tmp_path / "data" / "test", 2, first_seed=100)
    (tmp_path / "data" / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return tmp_path


def stage(name, *arguments):
    """Run a stage's script; what it says when it fails, else None."""
    before, sys.argv = sys.argv, [f"stages/{name}.py", *arguments]
    try:
        runpy.run_path(str(ROOT / "stages" / f"{name}.py"), run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before


def prepare(part):
    assert stage("prepare", part) is None


def drop_bytes(project):
    return {path.name: path.read_bytes() for path in (project / "prepared" / "train" / "a").iterdir()}


def test_test_set_and_drop_are_written_with_their_metrics(project):
    prepare("test")
    prepare("train/a")
    assert len(open_store(project / "prepared" / "test")) == 6
    assert len(open_store(project / "prepared" / "train" / "a")) == 9
    metric = json.loads((project / "results" / "prepare" / "a.json").read_text())
    assert metric["classes"] == {"cat": 3, "dog": 3, "owl": 3}
    assert json.loads((project / "results" / "prepare" / "test.json").read_text())["images"] == 6
    # Another test image makes DVC run every prepare again. What it writes must stay the same, so that no
    # model follows.
    before = drop_bytes(project)
    write_image(project / "data" / "test" / "cat" / "new.png", pixels(500))
    prepare("test")
    prepare("train/a")
    assert drop_bytes(project) == before


def change_params(project, **sections):
    params = yaml.safe_load((project / "params.yaml").read_text())
    for section, values in sections.items():
        params[section].update(values)
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def test_the_validation_images_of_all_drops_are_certified_on_request(project):
    class_folders(project / "data" / "train" / "b", 8, first_seed=500)
    change_params(
        project, data={"validation": 0.4, "drops": ["a", "b"]}, certify={"n": 100, "n0": 10, "stride": 2}
    )
    for part in ("test", "train/a", "train/b"):
        prepare(part)
    split = open_validation(project / "prepared" / "train")
    counts = [
        json.loads((project / f"results/prepare/{drop}.json").read_text()) for drop in ("a", "b", "test")
    ]
    assert [count["validation"]["images"] for count in counts] == [
        int(open_store(project / "prepared/train" / drop).validation.sum()) for drop in ("a", "b")
    ] + [0]
    assert sum(count["validation"]["images"] for count in counts) == len(split) >= 6
    write_model(project / "models" / "student", GRAY8)
    for folder, (name, images) in {
        "prepared/test": ("test", 6),
        "prepared/train": ("validation", len(split)),
    }.items():
        change_params(project, certify={"split": name, "images": folder})
        assert stage("certify", "student") is None
        table = pd.read_csv(project / "certificates" / "student.tsv", sep="\t")
        facts = json.loads((project / "certificates" / "student.json").read_text())
        assert table.idx.tolist() == list(range(0, images, 2))
        assert facts["split"] == name
    assert table.name.tolist() == split.names[::2]
    assert table.label.tolist() == split.labels[::2].tolist()
    assert {name.split("/")[0] for name in table.name} == {"a", "b"}
    assert facts["data_fingerprint"] == split.fingerprint


def shared_image(project):
    write_image(project / "data" / "train" / "a" / "dog" / "known.png", pixels(100))


def missing_drop(project):
    shutil.rmtree(project / "data" / "train" / "a")


def other_classes(project):
    (project / "data" / "classes.txt").write_text("cat\ndog\n")


def pickled(project):
    missing_drop(project)
    (project / "data" / "train" / "a").mkdir()
    np.savez(project / "data" / "train" / "a" / "a.npz", images=np.array([{}], object))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            shared_image,
            "error: data/train/a has 1 image(s) that also stand in the test set: dog/known.png "
            "(test image cat/000.png)",
        ),
        (
            missing_drop,
            "error: data/train/a is missing: the images of the drop 'a' belong there "
            "(`dvc pull` gets what is recorded",
        ),
        (other_classes, "error: data/classes.txt names 2 classes but num_classes is 3"),
        (pickled, "error: data/train/a/a.npz: `images` holds pickled Python objects"),
    ],
)
def test_a_bad_drop_ends_in_one_sentence(project, capfd, damage, message):
    prepare("test")
    damage(project)
    said = stage("prepare", "train/a")
    assert said.startswith(message)
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")
    assert not list(project.glob("prepared/train/*"))
    assert not (project / "results" / "prepare" / "a.json").exists()


@pytest.mark.slow
def test_as_dvc_runs_it(project):
    prepare("test")
    command = [sys.executable, ROOT / "stages" / "prepare.py", "train/a"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True)
    before = drop_bytes(project)
    shutil.rmtree(project / "prepared" / "train")
    prepare("train/a")
    assert drop_bytes(project) == before
    missing_drop(project)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: data/train/a is missing")
    assert done.stderr.count("\n") == 1
