"""The user's path: repro, no-op, another student, a new drop, a colleague's clone."""

import json
import shutil
import time
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.slow

# What 100 draws that all agree certify at sigma 0.25 and alpha 0.001.
LARGEST_RADIUS = 0.25 * NormalDist().inv_cdf(0.001 ** (1 / 100))

PREPARE = ["prepare@2025-01", "prepare@2025-02", "prepare@2025-03"]
BANKS = ["bank@2025-01", "bank@2025-02", "bank@2025-03"]
TEACHER = "teacher@2025-01"
AFTER_STUDENT = ["student", "certify@student", "metrics@student", "gate", "report"]


def test_one_repro_runs_every_stage_and_leaves_every_result(reproduced):
    project, ran = reproduced
    teacher = [TEACHER, "certify@teacher", "metrics@teacher"]
    assert sorted(ran) == sorted(["prepare_test", *PREPARE, *teacher, *AFTER_STUDENT])
    for role in ("teacher", "student"):
        metrics = json.loads((project.root / f"results/certify/details/{role}.json").read_text())
        rows = pd.read_csv(project.root / f"certificates/{role}.tsv", sep="\t")
        assert len(rows) == metrics["images"] == 32
        assert rows["radius"].max() <= LARGEST_RADIUS
        assert metrics["acr"] == pytest.approx((rows["radius"].fillna(0) * rows["correct"]).mean())
        trained = json.loads((project.root / f"results/{role}.json").read_text())
        assert trained["noisy_accuracy"] > 0.12, "two epochs give more than guessing, 0.1"
    transfer = json.loads((project.root / "results/student.json").read_text())
    assert transfer["agreement"] > 0.4, "two epochs bring the student's answers near the teacher's"
    assert (project.root / "report/index.html").stat().st_size > 10_000
    assert "student" in (project.root / "report/MODEL_CARD.md").read_text().lower()
    left = [path.name for path in (project.root / ".work").glob("*") if path.name != "certificates"]
    assert left == [], "resume files of finished stages stay behind"
    assert not list(project.root.glob("**/baseline.*")), "nothing is left of a role that does not exist"
    assert not (project.root / "banks").exists()
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_metrics_and_plots_are_dvcs(reproduced):
    project, _ = reproduced
    shown = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)
    files = shown[""]["data"]
    keys = [key for file in files.values() for key in file["data"]]
    assert sorted(files) == [
        "results/certify/student.json",
        "results/certify/teacher.json",
        "results/gate.json",
    ]
    assert set(keys) == {"acr", "smoothed_acc", "cert_0.25", "cert_0.5", "teacher_acr", "verdict"}
    assert len(keys) == len(set(keys)), "each key in one file, so that no column is named by its path"
    assert "error" not in json.dumps(shown)
    out = project.run("dvc", "plots", "show", "-o", str(project.root.parent / "plots"))
    page = (project.root.parent / "plots" / "index.html").read_text()
    assert "certified_accuracy" in page, out.stdout


def test_a_second_repro_runs_nothing(project):
    start = time.monotonic()
    assert project.stages_run("dvc", "repro") == []
    assert time.monotonic() - start < 20  # a few seconds on a free machine; this one may be busy
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_another_student_runs_only_what_follows(project):
    ran = project.stages_run("dvc", "exp", "run", "-S", "student=convnext", "-S", "+experiment=smoke")
    assert sorted(ran) == sorted(AFTER_STUDENT)
    params = json.loads(project.run("dvc", "params", "diff", "--json").stdout)
    assert params["params.yaml"]["student.key"] == {"old": "resnet", "new": "convnext"}
    diff = json.loads(project.run("dvc", "metrics", "diff", "--json").stdout)
    assert any("acr" in key for key in diff["results/certify/student.json"])
    assert "results/certify/teacher.json" not in diff
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    assert len(shown[0]["experiments"] or shown[-1]["experiments"]) == 1
    # Back again: everything is in the run cache.
    project.run("crt", "compose", "+experiment=smoke")
    assert project.stages_run("dvc", "repro") == []


def test_a_new_drop_pays_for_itself_alone_and_spares_the_teacher(project, tmp_path):
    """With a bank of the teacher's logits, which is computed once for each drop."""
    banked = ["+experiment=smoke", "bank=logits", "bank.views=2"]
    project.run("crt", "compose", *banked)
    assert sorted(project.stages_run("dvc", "repro", "student")) == [*BANKS, "student"]
    assert json.loads((project.root / "results/student.json").read_text())["bank_views"] == 2
    assert sorted(path.name for path in (project.root / "banks/2025-02").iterdir()) == [
        "bank.json",
        "view-0000.npy",
        "view-0001.npy",
    ]
    project.commit("a bank")
    project.run("crt", "compose", *banked, "student=regnet")
    changed = json.loads(project.run("dvc", "status", "--json", "bank", "student").stdout)
    assert list(changed) == ["student"], "another student replays the bank"
    delivery = tmp_path / "delivery"
    rng = np.random.default_rng(0)
    from PIL import Image

    for label in range(10):
        (delivery / str(label)).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(delivery / str(label) / f"{i}.png")
    project.run("crt", "ingest", str(delivery), "--drop", "2025-04")
    ran = project.stages_run("dvc", "repro")
    assert sorted(ran) == sorted(["prepare@2025-04", "bank@2025-04", *AFTER_STUDENT])
    counts = json.loads((project.root / "results/prepare/2025-04.json").read_text())
    assert counts["images"] == 30
    diff = json.loads(project.run("dvc", "metrics", "diff", "--json").stdout)
    assert "results/certify/student.json" in diff
    assert sum(len(file) for file in diff.values()) <= 15
    project.run("crt", "drop-data", "2025-04")
    assert not (project.root / "banks/2025-04").exists()
    # Another device's noise: the bank is refused, not trained from.
    view = project.root / "banks/2025-01/view-0000.npy"
    view.chmod(0o644)
    np.save(view, np.load(view)[::-1])
    done = project.run("python", "stages/student.py", check=False)
    assert done.returncode == 1
    assert "banks/2025-01 does not hold this teacher's logits" in done.stderr
    assert "Traceback" not in done.stderr


def seconds_of_rows(project, role):
    """What each image took to certify: a row that is taken over keeps its number."""
    rows = pd.read_csv(project.root / f"certificates/{role}.tsv", sep="\t")
    return dict(zip(rows["name"], rows["time"], strict=True))


def test_a_change_of_the_test_set_retrains_nothing_and_certifies_no_image_again(project):
    before = {role: seconds_of_rows(project, role) for role in ("teacher", "student")}
    test = project.root / "data/test"
    npz = next(test.glob("*.npz"))
    with np.load(npz) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    npz.chmod(0o644)
    extra = np.random.default_rng(1).integers(0, 256, (1, 8, 8), dtype=np.uint8)
    np.savez(npz, images=np.concatenate([images, extra]), labels=np.append(labels, 3))
    project.run("dvc", "add", "data")
    ran = project.stages_run("dvc", "repro")
    assert TEACHER not in ran
    assert "student" not in ran
    assert {"prepare_test", "certify@teacher", "certify@student", "metrics@student", "gate", "report"} <= set(
        ran
    )
    for role, seconds in before.items():  # at most one of the chosen images makes room for the new one
        assert len(seconds.items() - seconds_of_rows(project, role).items()) <= 1


def test_a_colleague_pulls_and_trains_nothing(project, tmp_path):
    remote = tmp_path / "team"
    project.run("dvc", "remote", "add", "-d", "team", str(remote))
    project.commit("a remote for the team")
    project.run("dvc", "push")
    colleague = type(project)(tmp_path / "clone")
    project.run("git", "clone", "-q", str(project.root), str(colleague.root))
    assert colleague.stages_run("dvc", "repro", "--pull") == []
    for path in ("models/student/model.safetensors", "certificates/student.tsv", "report/index.html"):
        assert (colleague.root / path).read_bytes() == (project.root / path).read_bytes()
    assert colleague.run("git", "status", "--porcelain").stdout == ""


def test_the_same_seed_gives_the_same_bytes(project):
    model = project.root / "models/student/model.safetensors"
    rows = [line.split("\t") for line in (project.root / "certificates/student.tsv").read_text().splitlines()]
    before = model.read_bytes()
    shutil.rmtree(project.root / "models/student")
    ran = project.stages_run("dvc", "repro", "--force", "--downstream", "student")
    assert sorted(ran) == sorted(AFTER_STUDENT)
    assert model.read_bytes() == before
    again = [
        line.split("\t") for line in (project.root / "certificates/student.tsv").read_text().splitlines()
    ]
    time_column = rows[0].index("time")
    for row in (*rows, *again):
        row[time_column] = ""
    assert again == rows
    # Seconds are no quality: only the hashes of certificates (their time column) and of times/ differ.
    assert project.run("dvc", "metrics", "diff").stdout == ""
    assert project.run("git", "status", "--porcelain").stdout.split() in ([], ["M", "dvc.lock"])


def test_one_parameter_makes_two_processes_train(project):
    project.run("crt", "compose", "+experiment=smoke", "runtime.processes=2")
    assert project.run("dvc", "status", "student").stdout.strip() == "Data and pipelines are up to date."
    model = project.root / "models/student/model.safetensors"
    before = model.read_bytes()
    model.unlink()
    done = project.run("python", "stages/student.py")
    assert done.stderr.count("epoch 2/2") == 1, "one progress bar"
    assert model.read_bytes() != before, "each process has noise of its own"
    assert [path.name for path in (project.root / ".work").glob("*")] in ([], ["certificates"])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("sed", "-i", "s/^sigma:.*/sigma: -1/", "params.yaml"), "sigma"),
        (("sed", "-i", "s/^sigma:/sgima:/", "params.yaml"), "sigma"),
        (("sed", "-i", "s/^7$//", "data/classes.txt"), "classes.txt"),
    ],
)
def test_a_wrong_input_ends_before_any_work(project, command, said):
    (project.root / "data/classes.txt").chmod(0o644)
    project.run(*command)
    if said == "classes.txt":
        project.run("dvc", "add", "data")
    done = project.run("dvc", "repro", "--force", check=False)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert said in text
    assert "Traceback" not in text


def test_a_missing_teacher_ends_in_a_sentence(project):
    shutil.rmtree(project.root / "models/teacher")
    done = project.run("python", "stages/student.py", check=False)
    assert done.returncode == 1
    assert "models/teacher" in done.stderr
    assert "Traceback" not in done.stderr
