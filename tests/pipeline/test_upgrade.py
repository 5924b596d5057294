"""A project that version 0.1.0 made takes this version: `git merge`, `crt upgrade`.

Nothing that cost hours runs again.
"""

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, Project

from crt.errors import UserError
from crt.evaluation.certificates import read_certificates
from crt.evaluation.paired import check_comparable

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "upgrade"
MUST_RUN = ["certify@teacher", "certify@student", "certify@baseline"]
FOLLOW = ["metrics@teacher", "metrics@student", "metrics@baseline", "gate", "report"]
TAKEN = [
    "prepare_test",
    "prepare@2025-01",
    "prepare@2025-02",
    "prepare@2025-03",
    "fetch@init",
    "fetch@baseline",
    "teacher@2025-01",
    "student",
]


class Team(Project):
    """A project whose environment has its own code installed, as `make setup` does it."""

    def run(self, *command: str, env: dict[str, str] | None = None, **options):
        return super().run(*command, env={"PYTHONPATH": str(self.root), **(env or {})}, **options)

    def planned(self, check: bool = True) -> list[str]:
        """The stages that `dvc repro` would run; not `check`: up to one that needs a folder of theirs."""
        return re.findall(r"Running stage '([^']+)'", self.run("dvc", "repro", "--dry", check=check).stdout)

    def params(self) -> dict:
        return yaml.safe_load((self.root / "params.yaml").read_text())

    def state(self) -> dict[str, str]:
        """What git and DVC keep of the project, and what is in the index."""
        names = self.run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.split("\n")
        files = {
            name: (self.root / name).read_text(errors="replace")
            for name in names
            if (self.root / name).is_file()
        }
        return files | {"index": self.run("git", "status", "--porcelain").stdout}


def flat(values: dict, above: str = "") -> dict:
    found = {}
    for key, value in values.items():
        found |= (
            flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
        )
    return found


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """A folder with the project of 0.1.0, all pulled, its DVC remote, and this version as a repository.

    That repository continues from the commit that the project was made from.
    """
    place = tmp_path_factory.mktemp("upgrade")
    with tarfile.open(HERE / "storage.tar.xz") as tar:
        tar.extractall(place)  # this repository's own file
    subprocess.run(
        ["git", "clone", "-q", "-b", "main", HERE / "project.bundle", place / "project"], check=True
    )
    project = Team(place / "project")
    for key, value in {"user.name": "tester", "user.email": "tester@example.org"}.items():
        project.run("git", "config", key, value)
    project.run("dvc", "pull", "-q")

    first = project.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    subprocess.run(["git", "clone", "-q", place / "project", place / "version"], check=True)
    version = Project(place / "version")
    version.run("git", "checkout", "-q", "-b", "new", first)
    version.run("git", "rm", "-rq", ".")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not (ROOT / name).is_relative_to(HERE):
            (version.root / name).parent.mkdir(parents=True, exist_ok=True)
            (version.root / name).write_bytes((ROOT / name).read_bytes())
    version.run("git", "config", "user.name", "tester")
    version.run("git", "config", "user.email", "tester@example.org")
    version.commit("The new version")
    return place


def copied(place: Path, to: Path) -> Team:
    """The project, with the DVC remote beside it, as a copy of their own."""
    subprocess.run(["cp", "-a", place / "project", place / "storage", f"{to}{os.sep}"], check=True)
    return Team(to / "project")


def merge(project: Team, place: Path, check: bool = True) -> None:
    project.run("git", "fetch", "-q", str(place / "version"), "new")
    project.run("git", "merge", "-q", "FETCH_HEAD", check=check)


@pytest.fixture(scope="module")
def upgraded(before, tmp_path_factory) -> tuple[Path, str]:
    """A folder with the upgraded and committed project beside its DVC remote, and what `crt upgrade` said."""
    place = tmp_path_factory.mktemp("upgraded")
    project = copied(before, place)
    merge(project, before, check=False)
    said = project.run("crt", "upgrade").stdout
    project.run("git", "commit", "-q", "--no-edit")
    return place, said


@pytest.fixture
def project(upgraded, tmp_path) -> Team:
    """A copy of the upgraded project that a test may change."""
    return copied(upgraded[0], tmp_path)


def test_choices_drops_pins_and_releases_are_kept(upgraded, before):
    project, old = Team(upgraded[0] / "project"), Team(before / "project")
    was, now = flat(old.params()), flat(project.params())
    gone = {name for name in was if name not in now}
    assert {name for name in gone if not name.startswith(("networks.", "epochs."))} == {
        "data.source",
        "teacher.bfloat16_on_cpu",
        "student.bfloat16_on_cpu",
        "student.init",
        "baseline.ref",
    }
    assert {name: now[name] for name in was if name in now} == {
        name: was[name] for name in was if name in now
    }
    assert now["student.arch_args.dims"] == [16, 16, 16, 32]
    assert now["data.drops"] == ["2025-01", "2025-02", "2025-03"]
    assert now["pinned.baseline.ref"] == now["pinned.init.ref"] == was["baseline.ref"]
    assert (now["start.init"], now["gate.against"], now["data.validation"]) == ("init", "baseline", 0.0)

    choice = yaml.safe_load((project.root / "conf/choice.yaml").read_text())
    assert {"override /preset": "digits"} in choice["defaults"]
    assert {"override /student": "convnext"} in choice["defaults"]
    composed = (
        "from crt.project import Project; from crt.project.takeover import difference; "
        "print(difference(Project()))"
    )
    assert project.run("python", "-c", composed).stdout == "None\n", "params.yaml is what conf/ composes to"

    assert not list((project.root / "conf").glob("dataset.yaml")) + list(
        (project.root / "conf").glob("pinned.yaml")
    )
    releases = [json.loads(line) for line in project.run("crt", "releases", "--json").stdout.splitlines()]
    assert [release["version"] for release in releases] == ["v1.1.0", "v1.0.0"]
    assert all(release["acr"] > 0 and release["certified_accuracy"]["0.25"] > 0 for release in releases)
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_it_says_what_must_run_and_only_that_runs(upgraded):
    project, said = Team(upgraded[0] / "project"), upgraded[1]
    assert sorted(project.planned()) == sorted(MUST_RUN + FOLLOW)
    taken, again = said.partition("must run:")[::2]
    for name in TAKEN:
        assert f"\n  {name}" in taken
        assert f"\n  {name}" not in again
    for name in MUST_RUN:
        assert re.search(rf"\n  {name} \(took [\d.]+ m?s\): certificates are of another kind", again)
    for name in FOLLOW:
        assert f"\n  {name}: " in again
    assert re.search(r"\n  teacher@2025-01 \(took \d+ ", taken), "what is saved"
    assert said.rstrip().endswith("`dvc repro`, `git add -A`, `git commit`, `dvc push`")


def test_a_second_run_has_nothing_to_do(project):
    state = project.state()
    assert "nothing to do" in project.run("crt", "upgrade").stdout
    assert project.state() == state
    (project.root / ".work/upgraded").unlink()  # as in another clone
    assert "nothing to do" in project.run("crt", "upgrade").stdout
    assert project.state() == state


@pytest.mark.nightly
def test_what_is_taken_over_is_what_this_version_writes(project):
    # Else a later change of the test set, which prepares all drops again, would train the teacher again.
    lock = (project.root / "dvc.lock").read_text()
    again = [name for name in TAKEN if name.startswith(("prepare", "fetch"))]
    assert sorted(project.stages_run("dvc", "repro", "--force", "--single-item", *again)) == sorted(again)
    assert (project.root / "dvc.lock").read_text() == lock
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_the_rest_runs_and_a_clone_gets_everything(project, before, tmp_path):
    weights = (project.root / "models/teacher/model.safetensors").read_bytes()
    ran = project.stages_run("dvc", "repro")
    assert sorted(ran) == sorted(MUST_RUN + FOLLOW)
    assert (project.root / "models/teacher/model.safetensors").read_bytes() == weights
    assert "data" not in project.run("dvc", "status").stdout.lower().replace(
        "data and pipelines are up to date", ""
    )
    metrics = json.loads((project.root / "results/certify/student.json").read_text())
    assert metrics["acr"] > 0.02
    check_certificates(before / "project", project.root)
    assert json.loads((project.root / "times/teacher.json").read_text())["seconds"] > 1
    project.commit("Results of the new version")
    project.run("dvc", "push", "-q")

    subprocess.run(["git", "clone", "-q", project.root, tmp_path / "clone"], check=True)
    clone = Team(tmp_path / "clone")
    clone.run("dvc", "pull", "-q")
    assert clone.planned() == []
    assert "up to date" in clone.run("dvc", "status").stdout
    assert "nothing to do" in clone.run("crt", "upgrade").stdout
    assert clone.run("git", "status", "--porcelain").stdout == ""


def check_certificates(before: Path, after: Path) -> None:
    """Those of the old noise are read and recognized.

    They are not compared with the new ones, which are of the same networks.
    """
    for role in ("teacher", "student", "baseline"):
        old, new = (read_certificates(root / f"certificates/{role}.tsv") for root in (before, after))
        assert (old.noise, new.noise) == (None, "integer")
        common = set(old.name) & set(new.name)  # certify.max_images chooses others since
        assert len(old) == len(new) == 40
        assert common
        first, second = (dict(zip(c.name, c.correct, strict=True)) for c in (old, new))
        assert np.mean([first[name] == second[name] for name in common]) > 0.7
        assert abs(old.right_radius.mean() - new.right_radius.mean()) < 0.15
        with pytest.raises(UserError, match="is of an older kind, with other noise"):
            check_comparable(new, old)


@pytest.mark.nightly
def test_a_clone_that_pulled_nothing(before, tmp_path):
    subprocess.run(["cp", "-a", before / "storage", f"{tmp_path}{os.sep}"], check=True)
    subprocess.run(["git", "clone", "-q", before / "project", tmp_path / "project"], check=True)
    project = Team(tmp_path / "project")
    project.run("git", "config", "user.name", "tester")
    project.run("git", "config", "user.email", "tester@example.org")
    merge(project, before, check=False)
    refused = project.run("crt", "upgrade", check=False)
    assert refused.returncode == 1
    assert re.fullmatch(r"error: data/\S+ is missing: `dvc pull data.dvc`, then run again\n", refused.stderr)
    project.run("dvc", "pull", "-q", "data.dvc")
    said = project.run("crt", "upgrade").stdout
    assert "\n  teacher@2025-01 (took" in said.partition("must run:")[0]
    # Not checked further: the first stage that follows misses their files.
    assert sorted(project.planned(check=False)) == sorted(MUST_RUN)
    project.run("git", "commit", "-q", "--no-edit")


@pytest.mark.parametrize("edit", ["parameter", pytest.param("code", marks=pytest.mark.nightly)])
def test_a_teacher_that_is_out_of_date_is_not_taken_over(before, tmp_path, edit):
    project = copied(before, tmp_path)
    code = "crt/processes.py"
    if edit == "parameter":
        params = project.root / "params.yaml"
        params.write_text(params.read_text().replace("    lbd: 20.0\n", "    lbd: 10.0\n"))
        said = "teacher.method.lbd is 10.0, and it ran with 20.0"
    else:
        (project.root / code).write_text((project.root / code).read_text() + "# edited\n")
        said = f"{code} had changed since it ran, before the merge"
    project.run("git", "commit", "-qam", "An edit")
    merge(project, before, check=False)
    project.run("git", "checkout", "MERGE_HEAD", "--", code)  # an edit of code is for people to resolve
    again = project.run("crt", "upgrade").stdout.partition("must run:")[2]
    assert re.search(rf"\n  teacher@2025-01 \(took .+\): {re.escape(said)}\n", again)
    assert "teacher@2025-01" in project.planned(check=False)
    if edit == "parameter":  # it is not too late
        assert re.search(r"\n  student \(took .+\): it depends on what teacher@2025-01 writes\. ", again)
        project.run("crt", "compose", "teacher.method.lbd=20.0")
        said = project.run("crt", "upgrade").stdout
        assert re.search(r"\n  teacher@2025-01 .*\n  student ", said.partition("must run:")[0])
        assert sorted(project.planned()) == sorted(MUST_RUN + FOLLOW)


@pytest.mark.nightly
def test_a_drop_that_has_not_been_trained_on(before, tmp_path):
    project = copied(before, tmp_path)
    project.run("crt", "ingest", "data/train/2025-03", "--drop", "2025-04")
    project.commit("Drop 2025-04, not trained yet")
    merge(project, before, check=False)
    taken, again = project.run("crt", "upgrade").stdout.partition("must run:")[::2]
    assert "\n  teacher@2025-01 (took" in taken
    assert "\n  prepare@2025-04: it has not run before" in again
    assert re.search(r"\n  student \(took .+\): data.drops is .*2025-04.*, and it ran with ", again)
    planned = project.planned()
    assert {"prepare@2025-04", "student"} <= set(planned)
    assert not [name for name in planned if name.startswith(("teacher", "fetch", "prepare_test"))]


@pytest.mark.nightly
def test_another_test_set_that_has_not_been_prepared(before, tmp_path):
    project = copied(before, tmp_path)
    (archive,) = (project.root / "data/test").iterdir()
    with np.load(archive) as arrays:
        kept = {name: array[:-1] for name, array in arrays.items()}
    archive.unlink()
    np.savez_compressed(archive, **kept)
    project.run("dvc", "add", "-q", "data")
    project.commit("One test image less, nothing run")
    merge(project, before, check=False)
    again = project.run("crt", "upgrade").stdout.partition("must run:")[2]
    assert "\n  prepare_test: data/test has changed since it ran" in again
    assert re.search(r"\n  teacher@2025-01 .*: it depends on what prepare@2025-01 writes\. ", again)
    ran = project.stages_run(
        "dvc", "repro", "prepare_test", *(name for name in TAKEN if name.startswith("prepare@"))
    )
    assert len(ran) == 4
    taken = project.run("crt", "upgrade").stdout.partition("must run:")[0]
    assert "\n  teacher@2025-01" in taken
    assert "\n  student" in taken
    assert sorted(project.planned()) == sorted(MUST_RUN + FOLLOW)


@pytest.mark.nightly
def test_a_fetched_teacher(before, tmp_path):
    project = copied(before, tmp_path)
    project.run("git", "checkout", "-q", "-b", "taught", "origin/taught")
    project.run("dvc", "pull", "-q")
    merge(project, before, check=False)
    said = project.run("crt", "upgrade").stdout
    assert "\n  fetch_teacher@teacher" in said.partition("must run:")[0]
    assert "teacher: released" in (project.root / "conf/choice.yaml").read_text()
    planned = project.planned()
    assert not [name for name in planned if name.startswith(("fetch", "teacher", "student", "prepare"))]
    assert "certify@teacher" in planned
    assert not (project.root / "models/init").exists(), "no start is pinned"


@pytest.mark.nightly
def test_with_the_merge_driver_and_conflicts_elsewhere(before, tmp_path, upgraded):
    project = copied(before, tmp_path)
    project.run("git", "config", "merge.crt.driver", "crt merge-driver %O %A %B %P")
    readme = project.root / "README.md"
    readme.write_text("Our project\n")
    project.run("git", "commit", "-qam", "Our README")
    merge(project, before, check=False)
    state = project.state()
    refused = project.run("crt", "upgrade", check=False)
    assert refused.returncode == 1
    assert "git could not merge README.md: resolve that and `git add` it" in refused.stderr
    assert project.state() == state
    readme.write_text("Our project\n")
    project.run("git", "add", "README.md")
    project.run("crt", "upgrade")
    project.run("git", "commit", "-q", "--no-edit")
    other = Team(upgraded[0] / "project")
    for name in ("params.yaml", "conf/choice.yaml", "dvc.lock"):
        assert (project.root / name).read_text() == (other.root / name).read_text()
    assert project.run("git", "ls-tree", "-r", "HEAD", "results").stdout == (
        other.run("git", "ls-tree", "-r", "HEAD", "results").stdout
    )


@pytest.mark.nightly
@pytest.mark.parametrize("step", ["_choice", "_take_over", "_get", "_commit"])
def test_a_kill(before, upgraded, tmp_path, step):
    project = copied(before, tmp_path)
    merge(project, before, check=False)
    if step == "_get":
        subprocess.run(["rm", "-rf", project.root / "models/teacher"], check=True)
    killed = (
        "import os, crt.project.upgrade as u\n"
        f"u.{step} = lambda *_: os._exit(9)\n"
        "from crt.cli import main\n"
        "main()\n"
    )
    assert project.run("python", "-c", killed, "upgrade", check=False).returncode == 9
    project.run("crt", "upgrade")
    project.run("git", "commit", "-q", "--no-edit")
    other = Team(upgraded[0] / "project")
    for name in ("params.yaml", "conf/choice.yaml", "dvc.lock"):
        assert (project.root / name).read_text() == (other.root / name).read_text()


@pytest.mark.nightly
def test_a_merge_that_was_given_up_and_done_again(before, upgraded, tmp_path):
    project = copied(before, tmp_path)
    state = project.state()
    merge(project, before, check=False)
    project.run("crt", "upgrade")
    project.run("git", "merge", "--abort")
    project.run("git", "clean", "-fdq")
    project.run("dvc", "checkout", "-q")
    assert project.state() == state
    assert "up to date" in project.run("dvc", "status").stdout
    merge(project, before, check=False)
    project.run("crt", "upgrade")
    project.run("git", "commit", "-q", "--no-edit")
    other = Team(upgraded[0] / "project")
    for name in ("params.yaml", "conf/choice.yaml", "dvc.lock"):
        assert (project.root / name).read_text() == (other.root / name).read_text()


@pytest.mark.nightly
def test_a_student_of_their_own(before, tmp_path):
    project = copied(before, tmp_path)
    folder = project.root / "conf"
    (folder / "student/ours.yaml").write_text(
        "defaults: [_sgd, _self_]\nkey: ours\narch: regnetx_002\narch_args: {depth: 6}\n"
        "bfloat16_on_cpu: true\nlr: 0.15\n"
    )
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("- student: convnext", "- student: ours"))
    project.run("crt", "compose", "+experiment=smoke")
    project.commit("A student of our own, not trained yet")
    merge(project, before, check=False)
    again = project.run("crt", "upgrade").stdout.partition("must run:")[2]
    assert re.search(r"\n  student \(took .+\): student\.\w+ is .+, and it ran with ", again)
    student = project.params()["student"]
    assert (student["key"], student["arch"], student["arch_args"], student["lr"]) == (
        "ours", "regnetx_002", {"depth": 6}, 0.15,
    )  # fmt: skip
    assert "bfloat16_on_cpu" not in (folder / "student/ours.yaml").read_text()
    project.run("crt", "compose", "student=resnet")
    project.run("crt", "compose", "student=ours")
    assert project.params()["student"]["arch"] == "regnetx_002"


def test_a_project_that_needs_no_upgrade(before):
    done = Project(before / "version").run("crt", "upgrade", env={"PYTHONPATH": str(ROOT)})
    assert "nothing to do" in done.stdout
