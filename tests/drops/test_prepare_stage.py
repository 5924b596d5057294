"""The script stages/prepare.py, as DVC runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from model_folders import write_model
from raw_drops import CLASSES, GREY8, class_folders, pixels, write_image

from crt.data.store import open_store, open_validation

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow  # each test starts the script


@pytest.fixture
def project(tmp_path):
    """A folder with params.yaml, a training drop and a test set."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"].update(num_classes=3, channels=1, image_size=8, drops=["a"], resize="none")
    params["teacher"].update(drop="a", trained=["a"])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    class_folders(tmp_path / "data" / "train" / "a", 3)
    class_folders(tmp_path / "data" / "test", 2, first_seed=100)
    (tmp_path / "data" / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return tmp_path


def prepare(project, part, check=True):
    return stage(project, "prepare", part, check=check)


def stage(project, name, *arguments, check=True):
    done = subprocess.run(
        [sys.executable, ROOT / "stages" / f"{name}.py", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_test_set_and_drop_are_written_with_their_metrics(project):
    prepare(project, "test")
    prepare(project, "train/a")
    assert len(open_store(project / "prepared" / "test")) == 6
    assert len(open_store(project / "prepared" / "train" / "a")) == 9
    metric = json.loads((project / "results" / "prepare" / "a.json").read_text())
    assert metric["classes"] == {"cat": 3, "dog": 3, "owl": 3}
    assert json.loads((project / "results" / "prepare" / "test.json").read_text())["images"] == 6
    # Another test image makes DVC run every prepare again; what it writes must stay the same, so that no model follows.
    before = {path.name: path.read_bytes() for path in (project / "prepared" / "train" / "a").iterdir()}
    write_image(project / "data" / "test" / "cat" / "new.png", pixels(500))
    prepare(project, "test")
    prepare(project, "train/a")
    assert {
        path.name: path.read_bytes() for path in (project / "prepared" / "train" / "a").iterdir()
    } == before


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
        prepare(project, part)
    split = open_validation(project / "prepared" / "train")
    counts = [
        json.loads((project / f"results/prepare/{drop}.json").read_text()) for drop in ("a", "b", "test")
    ]
    assert [count["validation"]["images"] for count in counts] == [
        int(open_store(project / "prepared/train" / drop).validation.sum()) for drop in ("a", "b")
    ] + [0]
    assert sum(count["validation"]["images"] for count in counts) == len(split) >= 6
    write_model(project / "models" / "student", GREY8)
    for folder, (name, images) in {
        "prepared/test": ("test", 6),
        "prepared/train": ("validation", len(split)),
    }.items():
        change_params(project, certify={"split": name, "images": folder})
        stage(project, "certify", "student")
        table = pd.read_csv(project / "certificates" / "student.tsv", sep="\t")
        facts = json.loads((project / "certificates" / "student.json").read_text())
        assert table.idx.tolist() == list(range(0, images, 2))
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
            "error: data/train/a has 1 image(s) that also stand in the test set: dog/known.png (test image cat/000.png)",
        ),
        (
            missing_drop,
            "error: data/train/a is missing: the images of the drop 'a' belong there (`dvc pull` gets what is recorded",
        ),
        (other_classes, "error: data/classes.txt names 2 classes but num_classes is 3"),
        (pickled, "error: data/train/a/a.npz: `images` holds pickled Python objects"),
    ],
)
def test_a_bad_drop_ends_in_one_sentence(project, damage, message):
    prepare(project, "test")
    damage(project)
    done = prepare(project, "train/a", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (project / "prepared" / "train").exists() or not list(
        (project / "prepared" / "train").iterdir()
    )
    assert not (project / "results" / "prepare" / "a.json").exists()
