"""Roles and drops that go away leave nothing, by `dvc repro` and by `dvc exp run`.

And `crt apply` and `crt experiments`. With real DVC and this project's dvc.yaml, whose stages only write
their outputs.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from data_repo import assert_composed, choice, commit, run
from quick_pipeline import METRICS, make_quick

from crt.commands.compose import apply, compose
from crt.commands.ingest import drop_data
from crt.commands.pin import set_pins
from crt.config import load
from crt.errors import UserError
from crt.project import Project

pytestmark = [
    pytest.mark.real_dvc,
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),  # DVC's own
]


@pytest.fixture(scope="module")
def ran(pulled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository after one run with nothing pinned, committed."""
    root = tmp_path_factory.mktemp("quick") / "repo"
    shutil.copytree(pulled, root)
    make_quick(root)
    run(root, "git", "config", "user.name", "t")
    run(root, "git", "config", "user.email", "t@example.org")
    commit(root)
    Project(root).dvc("repro", "-q")
    commit(root)
    return root


@pytest.fixture
def quick(ran: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran, tmp_path / "repo", symlinks=True))


def pin(root: Path, ref: str | None) -> None:
    project = Project(root)
    chosen = project.choice
    set_pins(chosen, ref, ref and {"ref": f"{ref}#sha256={'a' * 64}", "reason": None})
    project.choose(chosen)


def traces(root: Path, *names: str) -> list[str]:
    """Files, and records in dvc.lock, of roles or drops."""
    files = [
        path.relative_to(root).as_posix()
        for folder in ("models", "certificates", "results", "prepared", "banks", "times")
        for path in (root / folder).rglob("*")
        if path.stem in names
    ]
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return files + [name for name in stages if name.partition("@")[2] in names]


def is_clean(root: Path) -> bool:
    return json.loads(Project(root).dvc("status", "--json")) == {}


def test_unpinned_by_repro(quick):
    before = (quick / "dvc.lock").read_text()
    pin(quick, "registry:student@v1.0.0")
    Project(quick).dvc("repro", "-q")
    commit(quick)
    assert {
        "models/init", "models/baseline", "certificates/baseline.tsv",
        "results/certify/details/baseline.json", "fetch@init", "metrics@baseline",
    } <= set(
        traces(quick, "init", "baseline")
    )  # fmt: skip
    assert is_clean(quick)
    pin(quick, None)
    assert traces(quick, "init", "baseline") == []
    Project(quick).dvc("repro", "-q")
    assert traces(quick, "init", "baseline") == []
    assert is_clean(quick)
    assert run(quick, "git", "diff", "HEAD~1", "--stat") == "", "all is as before it was pinned"
    assert (quick / "dvc.lock").read_text() == before


def test_unpinned_after_a_kill_and_without_records(quick):
    """The files go even where dvc.lock knows nothing of them, as after a merge."""
    pin(quick, "registry:student@v1.0.0")
    Project(quick).dvc("repro", "-q")
    lock = yaml.safe_load((quick / "dvc.lock").read_text())
    lock["stages"] = {name: stage for name, stage in lock["stages"].items() if "baseline" not in name}
    (quick / "dvc.lock").write_text(yaml.safe_dump(lock))
    chosen = Project(quick).choice
    set_pins(chosen, None)
    (quick / "conf/choice.yaml").write_text(chosen.text())  # a kill right after
    compose(Project(quick))
    assert traces(quick, "init", "baseline") == []


def test_unpinned_by_an_experiment(quick):
    pin(quick, "registry:student@v1.0.0")
    Project(quick).dvc("repro", "-q")
    commit(quick)
    gone = [
        "~pinned.init",
        "~pinned.baseline",
        "~certified.baseline",
        "start.init=teacher",
        "gate.against=teacher",
    ]
    Project(quick).dvc("exp", "run", "-q", *(part for one in gone for part in ("-S", one)))
    wanted = (quick / "params.yaml").read_text()
    compose(Project(quick))
    assert (quick / "params.yaml").read_text() == wanted
    assert_composed(quick)
    assert traces(quick, "init", "baseline") == []
    assert is_clean(quick)


def test_a_drop_that_goes_away(quick):
    assert len(traces(quick, "2025-02")) == 3
    drop_data(Project(quick), "2025-02")
    assert traces(quick, "2025-02") == []
    Project(quick).dvc("repro", "-q")
    assert is_clean(quick)


def test_another_teacher_keeps_the_outputs_that_its_stage_writes(quick):
    """The model folder of the trained teacher is the fetched one's too; its times and curve are not."""
    compose(Project(quick), ["teacher=fetch", "teacher.ref=path:elsewhere"])
    assert (quick / "models/teacher").exists()
    assert (quick / "results/teacher.json").exists()
    assert not (quick / "times/teacher.json").exists()
    assert not (quick / "results/teacher/training.tsv").exists()
    assert traces(quick, "2025-01") == [
        "results/prepare/2025-01.json",
        "prepared/train/2025-01",
        "prepare@2025-01",
    ]


def test_an_experiment_is_applied_with_its_choices(quick, capsys):
    project = Project(quick)
    for name, student in (("one", "convnext"), ("two", "regnet")):  # one after the other, in the workspace
        project.dvc("exp", "run", "-q", "-n", name, "-S", f"student={student}", "-S", "sigma=0.5")
    apply(Project(quick), "one")
    assert (
        "taken over from params.yaml into conf/choice.yaml: student=convnext, sigma=0.5"
        in capsys.readouterr().out
    )
    assert_composed(quick)
    # A choice that is not committed would be lost.
    with pytest.raises(UserError, match="conf/ is not committed, and the experiment's would replace it"):
        apply(Project(quick), "two")
    run(quick, "git", "checkout", "-q", "conf", "params.yaml")
    apply(Project(quick), "two")
    # The next experiment starts from it.
    project.dvc("exp", "run", "-q", "-S", "seed=1")
    found = load(quick / "params.yaml")
    assert (found.student.key, found.sigma, found.seed) == ("regnet", 0.5, 1)
    # The same by DVC's own command: the next command takes over.
    run(quick, "git", "checkout", "-q", ".")
    project.dvc("exp", "apply", "-q", "one")
    compose(Project(quick), ["certify.n=2000"])
    assert choice(quick)["sigma"] == 0.5
    assert {"override /student": "convnext"} in choice(quick)["defaults"]


@pytest.mark.nightly
def test_experiments_fit_the_screen(quick, capfd):
    from crt.commands.show import experiments

    for number, student in enumerate(("convnext", "mobilenetv4", "regnet")):
        settings = [
            f"student={student}",
            f"seed={number}",
            "sigma=0.5",
            *(["student.lr=0.3"] * (number == 2)),
        ]
        Project(quick).dvc("exp", "run", "-q", *(part for one in settings for part in ("-S", one)))
        run(quick, "git", "checkout", "-q", ".")
    experiments(Project(quick), ["--sort-by", "acr"])
    lines = capfd.readouterr().out.splitlines()
    header = next(line for line in lines if "Experiment" in line)
    assert header.split() == [
        "Experiment",
        *list(METRICS["results/certify/student.json"]),
        "student.lr",
        "student.key",
        "seed",
        "sigma",
    ]
    assert any("mobilenetv4" in line and "0.5" in line for line in lines)
    assert max(map(len, lines)) <= 160
