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


def digits(project, count: int, seed: int, labeled: bool = True) -> dict[str, np.ndarray]:
    """A delivery like the sample's first drop, not equal to it."""
    with np.load(next((project.root / "data/train/2025-01").glob("*.npz"))) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(images), count)
    moved = images[chosen].astype(int) + rng.integers(-9, 10, (count, 8, 8))
    found = {"images": moved.clip(0, 255).astype(np.uint8)}
    return found | ({"labels": labels[chosen]} if labeled else {})


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


def gate(project) -> dict:
    return json.loads((project.root / "results/gate/details.json").read_text())


def past(project) -> list[dict]:
    """The releases before the student and itself."""
    return json.loads((project.root / "results/gate/history.json").read_text())["releases"]


def is_clean(project) -> bool:
    return json.loads(project.run("dvc", "status", "--json").stdout) == {}


def weights(project, role: str) -> bytes:
    return (project.root / f"models/{role}/model.safetensors").read_bytes()


def clone(project, origin, to):
    to.parent.mkdir(exist_ok=True)
    other = type(project)(to)
    project.run("git", "clone", "-q", str(origin), str(to))
    for key, value in (("user.name", "bob"), ("user.email", "bob@example.org")):
        other.run("git", "config", key, value)
    return other


def add_a_class(project, name: str) -> None:
    """As docs/data.md has it: a line in classes.txt and images in the test set."""
    classes = project.root / "data/classes.txt"
    classes.chmod(0o644)
    classes.write_text(classes.read_text() + name + "\n")
    test = next((project.root / "data/test").glob("*.npz"))
    with np.load(test) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    test.chmod(0o644)
    np.savez(test, images=np.concatenate([images, 255 - images[:4]]), labels=np.append(labels, [10] * 4))
    project.run("dvc", "add", "data")
    project.run("crt", "compose", "data.num_classes=11")


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

    # The first delivery, labeled: compared with v1.0.0, started from it, released.
    ran, said = retrain(alice, "2025-04", digits(alice, 150, 1))
    assert ran == sorted(["prepare@2025-04", *RETRAINED, *PINNED])
    assert "student@v1.0.0 is pinned" in said
    assert weights(alice, "init") == weights(alice, "baseline") == first
    assert json.loads((alice.root / "results/student.json").read_text())["warm_start"] is True
    assert verdict(alice) == "pass"
    assert "The baseline is itself the anchor, v1.0.0 (the first of its chain)." in gate(alice)["sentences"]
    alice.run("crt", "release")
    assert is_clean(alice), "a release invalidates nothing"
    second = weights(alice, "student")
    alice.run("git", "push", "-qu", "--follow-tags", "origin", "main")

    # A colleague on a bare machine runs nothing. The second delivery, unlabeled, lies in a bucket, and the
    # script of docs/ci.md takes it in.
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
    np.savez(bucket / "new.npz", **digits(bob, 150, 2, labeled=False))
    done = bob.run("bash", "ci/retrain.sh")
    drop = yaml.safe_load((bob.root / "params.yaml").read_text())["data"]["drops"][-1]
    ran = re.findall(r"Running stage '([^']+)'", done.stdout + done.stderr)
    assert sorted(ran) == sorted([f"prepare@{drop}", *RETRAINED, *PINNED])
    summary = (bob.root / "summary.md").read_text()
    assert "student@v1.1.0 is pinned" in summary
    assert "Gate: pass." in summary
    assert "Since the anchor v1.0.0 (the first of its chain) ACR has changed by" in summary
    assert {row["against"] for row in gate(bob)["comparisons"]} == {"baseline", "anchor", "teacher"}
    assert gate(bob)["anchor"]["images"] == 128
    assert (bob.root / "models/baseline/anchor/certificates.tsv").is_file()
    assert [release["version"] for release in past(bob)] == ["v1.0.0", "v1.1.0", None]
    assert all(release["date"] for release in past(bob)[:2])
    assert [release["drops"][-1] for release in past(bob)] == ["2025-03", "2025-04", drop]
    assert [release["candidates"] for release in past(bob)] == [None, 1, None]
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
    assert [line.split()[0] for line in table[1:4]] == ["*", "v1.1.0", "v1.0.0"]
    assert table[4].startswith("anchor: v1.0.0 (the first of its chain)")
    assert table[5:] == ["v1.2.0 is the baseline of 1 student that was committed since"]
    assert shown[2]["since_anchor"] is None
    for row, changes in (
        (shown[1], [shown[1]["change"]]),
        (shown[0], [shown[1]["change"], shown[0]["change"]]),
    ):
        together = sum(change["acr"] for change in changes)  # all are of the same test images
        assert row["since_anchor"]["acr"] == pytest.approx(together)

    # Another anchor needs a reason, and nothing else runs for it.
    without = alice.run("crt", "anchor", "v1.1.0", check=False)
    assert without.returncode == 2
    assert "--reason" in without.stderr
    alice.run("crt", "anchor", "v1.1.0", "--reason", "labels before it were wrong")
    assert alice.stages_run("dvc", "repro", "gate") == ["fetch@baseline", "gate"]
    assert "Since the anchor v1.1.0 (labels before it were wrong)" in " ".join(gate(alice)["sentences"])
    assert "labels before it were wrong" in alice.run("crt", "releases").stdout

    # Back to an older release; one that is withdrawn is not pinned again.
    alice.run("crt", "pin", "v1.0.0")
    alice.run("dvc", "repro", "fetch@baseline", "fetch@init")
    assert weights(alice, "baseline") == weights(alice, "init") == first
    alice.run("gto", "deprecate", "student", "v1.2.0")
    alice.run("crt", "pin", "latest")
    pinned = yaml.safe_load((alice.root / "conf/choice.yaml").read_text())["pinned"]
    assert pinned["baseline"]["ref"] == pinned["init"]["ref"] == shown[1]["ref"]

    # A new class: no release can be compared any more. Nothing is left of the one that was pinned, and the
    # gate and the report know nothing of it.
    add_a_class(alice, "ten")
    np.savez(tmp_path / "tens.npz", **(digits(alice, 30, 4) | {"labels": np.full(30, 10)}))
    alice.run("crt", "ingest", str(tmp_path / "tens.npz"), "--drop", "tens")
    alice.run("crt", "pin", "none")
    alice.run("dvc", "repro")
    alice.commit("a new class")
    assert verdict(alice) == "no baseline"
    left = [
        path for path in alice.root.glob("**/*baseline*") if ".dvc" not in path.parts and path.suffix != ".py"
    ]
    assert [path for path in left if ".git" not in path.parts] == []
    assert "baseline" not in (alice.root / "dvc.lock").read_text()
    page = (alice.root / "report/index.html").read_text()
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "aseline" not in re.sub("[Nn]o[ -]baseline( is pinned)?", "", page)
    assert [release["begins"] for release in past(alice)] == ["no release was pinned"]
    refused = alice.run("crt", "release", check=False)
    assert refused.returncode == 1
    assert "the classes are not those of v1.1.0, so that this release begins a chain" in refused.stderr
    assert "student@v2.0.0 is registered" in alice.run("crt", "release", "--bump", "major").stdout
    newest = json.loads(alice.run("crt", "releases", "--json").stdout.splitlines()[0])
    assert newest["begins"] == "the classes are not those of v1.1.0"
    alice.run("git", "push", "-q", "--follow-tags", "origin", "main")

    # A machine that has only the last commit does not take its student for the first release.
    ci = tmp_path / "ci"
    alice.run("git", "clone", "-q", "--depth", "1", f"file://{tmp_path}/origin.git", str(ci))
    ci = type(alice)(ci)
    ci.run("git", "config", "user.name", "ci")
    ci.run("git", "config", "user.email", "ci@example.org")
    refused = ci.run("crt", "release", check=False)
    assert refused.returncode == 1
    assert "origin has releases that this clone lacks (student@v1.0.0," in refused.stderr
    assert ci.run("git", "tag").stdout == "student@v2.0.0\n", (
        "git brings the tags of the commits that it brings"
    )
    ci.run("git", "fetch", "-q", "--tags")
    assert "v2.0.0" in ci.run("crt", "releases").stdout


def test_two_who_ingest_at_once(alice, tmp_path):
    """Each retrains on a drop of their own, and git merges.

    `dvc repro --pull` runs what neither ran, and then all agree.
    """
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
