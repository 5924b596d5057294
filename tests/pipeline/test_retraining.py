"""A year in short: deliveries, gates, releases, two people and an SSH remote; and two who ingest at once."""

import getpass
import json
import re

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.slow

RETRAINED = ["student", "certify@student", "metrics@student", "gate", "report"]
PINNED = ["fetch@init", "fetch@baseline", "certify@baseline", "metrics@baseline"]


def digits(project, count: int, seed: int, labelled: bool = True) -> dict[str, np.ndarray]:
    """A delivery like the sample's first drop, not equal to it."""
    with np.load(next((project.root / "data/train/2025-01").glob("*.npz"))) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(images), count)
    moved = images[chosen].astype(int) + rng.integers(-9, 10, (count, 8, 8))
    found = {"images": moved.clip(0, 255).astype(np.uint8)}
    return found | ({"labels": labels[chosen]} if labelled else {})


# Long enough for models that certify something, on enough images for these margins to be decided.
CHOICES = [
    "+experiment=smoke",
    "teacher.epochs=10",
    "student.epochs=10",
    "certify.max_images=128",
    "gate.margin=0.3",
    "gate.acr_margin=0.1",
]


def retrain(project, drop: str, arrays: dict[str, np.ndarray], *settings: str) -> tuple[list[str], str]:
    """Ingest, reproduce, commit; the stages that ran, by name, and what ingest said."""
    file = project.root.parent / f"{drop}.npz"
    np.savez(file, **arrays)
    said = project.run("crt", "ingest", str(file), "--drop", drop).stdout
    if settings:
        project.run("crt", "compose", *CHOICES, *settings)
    ran = project.stages_run("dvc", "repro")
    project.commit(f"drop {drop}")
    return sorted(ran), said


def verdict(project) -> str:
    return json.loads((project.root / "results/gate.json").read_text())["verdict"]


def weights(project, role: str) -> bytes:
    return (project.root / f"models/{role}/model.safetensors").read_bytes()


def clone(project, origin, to):
    to.parent.mkdir(exist_ok=True)
    other = type(project)(to)
    project.run("git", "clone", "-q", str(origin), str(to))
    for key, value in (("user.name", "bob"), ("user.email", "bob@example.org")):
        other.run("git", "config", key, value)
    return other


@pytest.fixture
def alice(project, tmp_path):
    """The project, reproduced, and a bare git repository that it is pushed to."""
    project.run("git", "init", "-q", "--bare", "-b", "main", str(tmp_path / "origin.git"))
    project.run("git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    return project


@pytest.mark.timeout(1800)  # minutes on a free machine; others may be busy
def test_a_year_of_retraining(alice, ssh, tmp_path):
    port, key = ssh
    login = f"['remote \"team\"']\n    user = {getpass.getuser()}\n    keyfile = {key}\n"
    alice.run("dvc", "remote", "add", "-d", "team", f"ssh://127.0.0.1:{port}{tmp_path}/team")
    (alice.root / ".dvc/config.local").write_text(login)
    alice.run("crt", "compose", *CHOICES)
    alice.run("dvc", "repro")
    uncommitted = alice.run("crt", "release", check=False)
    assert uncommitted.returncode == 1
    assert "what is not committed cannot be released" in uncommitted.stderr
    alice.commit("a remote")
    alice.run("crt", "release")
    assert "this commit is student@v1.0.0 already" in alice.run("crt", "release").stdout
    first = weights(alice, "student")
    alice.run("git", "push", "-qu", "--follow-tags", "origin", "main")

    # The first delivery, labelled: compared with v1.0.0, started from it, released.
    ran, said = retrain(alice, "2025-04", digits(alice, 150, 1))
    assert ran == sorted(["prepare@2025-04", *RETRAINED, *PINNED])
    assert "student@v1.0.0 is pinned" in said
    assert weights(alice, "init") == weights(alice, "baseline") == first
    assert json.loads((alice.root / "results/student.json").read_text())["warm_start"] is True
    assert verdict(alice) == "pass"
    alice.run("crt", "release")
    second = weights(alice, "student")
    alice.run("git", "push", "-qu", "--follow-tags", "origin", "main")

    # A colleague on a bare machine runs nothing. The second delivery, unlabelled, lies in a bucket, and is taken in by
    # the script of docs/ci.md.
    bob = clone(alice, tmp_path / "origin.git", tmp_path / "bob" / "repo")
    (bob.root / ".dvc/config.local").write_text(login)
    assert bob.stages_run("dvc", "repro", "--pull") == []
    assert weights(bob, "student") == second
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    np.savez(bucket / "old.npz", **digits(bob, 5, 1))
    (bob.root / "incoming").mkdir()
    bob.run("dvc", "import-url", str(bucket), "incoming/current")
    script = re.search(r"```bash\n(.*?)```", (bob.root / "docs/ci.md").read_text(), re.DOTALL)[1]
    (bob.root / "ci").mkdir()
    (bob.root / "ci/retrain.sh").write_text(script)
    bob.commit("deliveries come from a bucket")
    assert "nothing new" in bob.run("bash", "ci/retrain.sh").stdout
    (bucket / "old.npz").unlink()
    np.savez(bucket / "new.npz", **digits(bob, 150, 2, labelled=False))
    done = bob.run("bash", "ci/retrain.sh")
    drop = yaml.safe_load((bob.root / "params.yaml").read_text())["data"]["drops"][-1]
    ran = re.findall(r"Running stage '([^']+)'", done.stdout + done.stderr)
    assert sorted(ran) == sorted([f"prepare@{drop}", *RETRAINED, *PINNED])
    summary = (bob.root / "summary.md").read_text()
    assert "student@v1.1.0 is pinned" in summary
    assert "Gate: pass." in summary
    assert "| results/certify/student.json" in summary
    assert weights(bob, "baseline") == second
    assert json.loads((bob.root / f"results/prepare/{drop}.json").read_text())["unlabelled"] == 150
    bob.run("git", "checkout", "-q", "main")
    bob.run("git", "merge", "-q", "--no-ff", "--no-edit", f"retrain-{drop}")
    assert "v1.2.0" in bob.run("crt", "release").stdout
    bob.run("git", "push", "-q", "--follow-tags", "origin", "main")

    # Back to the first: nothing runs there either. The third delivery comes with a careless setting.
    alice.run("git", "pull", "-q")
    assert alice.stages_run("dvc", "repro", "--pull") == []
    ran, _ = retrain(alice, "2025-06", digits(alice, 50, 3), "student.init_lr=5.0", "gate.acr_margin=0.0")
    assert ran == sorted(["prepare@2025-06", *RETRAINED, *PINNED])
    assert verdict(alice) == "fail"
    refused = alice.run("crt", "release", check=False)
    assert refused.returncode == 1
    assert "is fail, so this is no release" in refused.stderr
    assert "Traceback" not in refused.stderr

    shown = [json.loads(line) for line in alice.run("crt", "releases", "--json").stdout.splitlines()]
    assert [row["version"] for row in shown] == ["v1.2.0", "v1.1.0", "v1.0.0"]
    assert [row["gate"] for row in shown] == ["pass", "pass", "no baseline"]
    assert shown[0]["drops"][-1] == drop
    assert shown[1]["baseline"] == shown[2]["ref"]
    table = alice.run("crt", "releases").stdout.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["*", "v1.1.0", "v1.0.0"]

    # Back to an older release; one that is withdrawn is not pinned again.
    alice.run("crt", "pin", "v1.0.0")
    alice.run("dvc", "repro", "fetch@baseline", "fetch@init")
    assert weights(alice, "baseline") == weights(alice, "init") == first
    alice.run("gto", "deprecate", "student", "v1.2.0")
    alice.run("crt", "pin", "latest")
    pinned = yaml.safe_load((alice.root / "conf/choice.yaml").read_text())["pinned"]
    assert pinned["baseline"]["ref"] == pinned["init"]["ref"] == shown[1]["ref"]

    # Nothing pinned any more: nothing is left of the release, and the gate and the report know nothing of it.
    alice.run("crt", "pin", "none")
    alice.run("dvc", "repro")
    alice.commit("nothing is pinned")
    assert verdict(alice) == "no baseline"
    left = [
        path for path in alice.root.glob("**/*baseline*") if ".dvc" not in path.parts and path.suffix != ".py"
    ]
    assert [path for path in left if ".git" not in path.parts] == []
    assert "baseline" not in (alice.root / "dvc.lock").read_text()
    page = (alice.root / "report/index.html").read_text()
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "aseline" not in re.sub("[Nn]o[ -]baseline( is pinned)?", "", page)


def test_two_who_ingest_at_once(alice, tmp_path):
    """Each retrains on a drop of their own; git merges, `dvc repro --pull` runs what neither ran, and then all agree."""
    alice.run("dvc", "remote", "add", "-d", "team", str(tmp_path / "team"))
    alice.commit("a remote")
    alice.run("dvc", "push")
    alice.run("git", "push", "-qu", "origin", "main")
    bob = clone(alice, tmp_path / "origin.git", tmp_path / "bob" / "repo")
    bob.run("dvc", "pull")
    for person, drop in ((alice, "2025-04a"), (bob, "2025-04b")):
        person.run("git", "config", "merge.crt.driver", "crt merge-driver %O %A %B %P")
        retrain(person, drop, digits(person, 50, 7 + len(drop) * (person is bob)))
        person.run("dvc", "push")
    alice.run("git", "push", "-q", "origin", "main")

    bob.run("git", "pull", "-q", "--no-rebase", "--no-edit")
    ran = bob.stages_run("dvc", "repro", "--pull")
    assert sorted(ran) == sorted(RETRAINED)
    drops = yaml.safe_load((bob.root / "params.yaml").read_text())["data"]["drops"]
    assert drops[-2:] == ["2025-04b", "2025-04a"]
    bob.commit("both drops")
    bob.run("dvc", "push")
    bob.run("git", "push", "-q", "origin", "main")

    alice.run("git", "pull", "-q")
    assert alice.stages_run("dvc", "repro", "--pull") == []
    assert weights(alice, "student") == weights(bob, "student")
    assert alice.run("git", "status", "--porcelain").stdout == ""
