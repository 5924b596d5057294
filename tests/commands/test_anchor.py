"""The anchor comes with the pinned release, and `crt anchor` changes it; a clone without tags is noticed."""

import json
import shutil
import subprocess

import pytest
from data_repo import assert_composed, choice, commit, delivery, run

from crt.commands.anchor import anchor
from crt.commands.ingest import ingest
from crt.commands.pin import pin
from crt.commands.release import _begins, _candidates, release
from crt.commands.releases import show_releases
from crt.config import load
from crt.errors import UserError
from crt.history import Entry
from crt.project import Project
from crt.project.releases import check_tags, find_release, list_releases

VERSIONS = ("v1.0.0", "v1.1.0", "v1.2.0")
CLASSES = ["a", "b"]


def ref_of(version: str) -> str:
    """The reference to a release's certificates."""
    return f"registry:student@{version}#sha256={str(VERSIONS.index(version)) * 64}"


def write_entry(repo, **known) -> None:
    results = {"arch": "resnet18", "sigma": 0.25, "acr": 0.4, "certified_accuracy": {"0.0": 0.9}}
    last = dict.fromkeys(Entry.model_fields) | results | known
    path = repo / "results/gate/history.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, "releases": [last]}))


def tag(repo, version: str, **facts) -> None:
    author = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    message = f"a student\n\n{json.dumps(facts)}\n"
    run(repo, "git", *author, "tag", "-a", f"student@{version}", "-m", message)


@pytest.fixture(scope="module")
def tagged(unpulled, tmp_path_factory):
    """A repository with three releases; the last one has the first for its anchor."""
    root = shutil.copytree(unpulled, tmp_path_factory.mktemp("anchor") / "repo")
    model = root / "models/student/model.json"
    model.parent.mkdir(parents=True)
    model.write_text(json.dumps({"classes": CLASSES, "image_size": 8, "channels": 1, "sigma": 0.25}))
    run(root, "git", "add", "-f", "models")
    since = {"acr": -0.012, "certified_accuracy": {"0.0": -0.02}}
    for number, version in enumerate(VERSIONS):
        anchored = {"anchor": "v1.0.0", "since_anchor": since} if version == "v1.2.0" else {}
        write_entry(
            root, model=str(number) * 64, baseline=VERSIONS[number - 1] if number else None, **anchored
        )
        commit(root)
        facts = {"weights_sha256": "a" * 64, "certificates_sha256": str(number) * 64, "anchor": None}
        if version == "v1.2.0":
            facts["anchor"] = {"ref": ref_of("v1.0.0"), "reason": None}
        tag(root, version, **facts)
    return root


@pytest.fixture
def chain(tagged, tmp_path):
    return shutil.copytree(tagged, tmp_path / "repo")


def pinned_anchor(repo) -> dict | None:
    assert_composed(repo)
    baseline = load(repo / "params.yaml").model_dump()["pinned"].get("baseline", {})
    assert baseline == choice(repo).get("pinned", {}).get("baseline", {})
    return baseline.get("anchor")


@pytest.mark.parametrize(
    ("version", "expected"),
    [("v1.2.0", "v1.0.0"), ("latest", "v1.0.0"), ("v1.1.0", "v1.1.0"), ("none", None)],
)
def test_a_release_is_pinned_with_the_anchor_that_it_had(chain, capsys, version, expected):
    pin(Project(chain), version)
    assert pinned_anchor(chain) == (expected and {"ref": ref_of(expected), "reason": None})
    if expected:
        assert (
            f"anchor: {expected} (the first of its chain; `crt anchor` chooses another)"
            in capsys.readouterr().out
        )


def test_a_reference_with_its_hash_has_the_same_anchor(chain):
    pin(Project(chain), find_release(Project(chain), "v1.2.0").ref)
    assert pinned_anchor(chain)["ref"] == ref_of("v1.0.0")


def test_what_is_no_release_or_names_no_certificates_has_no_anchor(chain, capsys):
    tag(chain, "v0.1.0", weights_sha256="b" * 64)
    pin(Project(chain), "v0.1.0")
    assert pinned_anchor(chain) is None
    assert "v0.1.0 names no certificates, so it has no anchor" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"student@v0\.1\.0 names no certificates"):
        anchor(Project(chain), "v0.1.0", "it was good")
    pin(Project(chain), "registry:elsewhere:student@v1.0.0")
    assert pinned_anchor(chain) is None


def test_ingest_pins_the_anchor_too(chain, tmp_path, capsys):
    run(chain, "dvc", "pull", "-q", "data.dvc")
    ingest(Project(chain), delivery(tmp_path / "in"), "2025-04")
    assert "anchor: v1.0.0 (the first of its chain" in capsys.readouterr().out
    assert pinned_anchor(chain) == {"ref": ref_of("v1.0.0"), "reason": None}


def test_another_anchor_needs_a_reason(chain, capsys):
    pin(Project(chain), "latest")
    anchor(Project(chain), "v1.1.0", "  a new\n camera since ")
    assert pinned_anchor(chain) == {"ref": ref_of("v1.1.0"), "reason": "a new camera since"}
    assert "student@v1.1.0 is the anchor from now on: a new camera since" in capsys.readouterr().out
    # It comes with the releases after it.
    commit(chain)
    tag(chain, "v1.3.0", weights_sha256="c" * 64, certificates_sha256="d" * 64, anchor=pinned_anchor(chain))
    pin(Project(chain), "none")
    pin(Project(chain), "latest")
    assert pinned_anchor(chain) == {"ref": ref_of("v1.1.0"), "reason": "a new camera since"}


def test_what_is_no_anchor_changes_nothing(chain):
    pin(Project(chain), "latest")
    before = (chain / "conf/choice.yaml").read_text()
    for version, reason, said in [
        ("v1.1.0", " ", "--reason has 0 characters: say why in one line of 1 to 300"),
        ("v1.1.0", "x" * 301, "--reason has 301 characters"),
        ("v1.1.0", "\x1b[31m", "--reason has"),
        ("v7.0.0", "why", r"no release 'v7\.0\.0'"),
    ]:
        with pytest.raises(UserError, match=said):
            anchor(Project(chain), version, reason)
        assert (chain / "conf/choice.yaml").read_text() == before


def test_without_a_baseline_there_is_no_anchor(chain):
    with pytest.raises(UserError, match=r"no release is pinned.*`crt pin` one first"):
        anchor(Project(chain), "v1.1.0", "why")


def test_releases_show_what_they_changed_together(chain, capsys):
    pin(Project(chain), "v1.2.0")
    anchor(Project(chain), "v1.1.0", "a new camera")
    write_entry(chain, baseline="v1.2.0", model="7" * 64)
    commit(chain)
    write_entry(chain, baseline="v1.2.0", model="8" * 64)
    commit(chain)
    capsys.readouterr()
    show_releases(Project(chain))
    header, *lines = capsys.readouterr().out.splitlines()
    column = header.index("since anchor")
    assert [line[column:].split()[0] for line in lines[:3]] == ["−0.012", "–", "–"]
    assert lines[3] == "anchor: v1.1.0 (a new camera); since anchor: change of ACR from it"
    assert lines[4] == "v1.2.0 is the baseline of 2 students that were committed since"
    assert len(lines) == 5
    show_releases(Project(chain), json_lines=True)
    newest = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (newest["anchor"], newest["since_anchor"]["acr"], newest["candidates"]) == ("v1.0.0", -0.012, None)


def test_candidates_are_told_apart_by_their_weights(chain):
    pin(Project(chain), "v1.2.0")
    for model, baseline in (("7", "v1.2.0"), ("8", "v1.2.0"), ("7", "v1.2.0"), ("9", "v1.1.0")):
        write_entry(chain, baseline=baseline, model=model * 64)
        commit(chain)
    project = Project(chain)
    assert _candidates(project, list_releases(project), project.params) == 2
    pin(project, "none")
    assert _candidates(project, list_releases(project), project.params) is None


def shallow(origin, to):
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{origin}", to], check=True)
    for key, value in (("user.name", "t"), ("user.email", "t@example.org")):
        run(to, "git", "config", key, value)
    return Project(to)


def test_a_shallow_clone_does_not_take_its_release_for_the_first(chain, tmp_path):
    write_entry(chain, model="7" * 64)
    commit(chain)
    project = shallow(chain, tmp_path / "clone")
    run(project.root, "dvc", "pull", "-q", "data.dvc")
    assert list_releases(project) == []
    said = r"origin has releases that this clone lacks \(student@v1\.0\.0, .*\): `git fetch --tags`"
    with pytest.raises(UserError, match=said):
        release(project)
    with pytest.raises(UserError, match=said):
        ingest(project, delivery(tmp_path / "in"), "2025-04")
    assert choice(project.root).get("pinned") is None
    # The remedy.
    run(project.root, "git", "fetch", "-q", "--tags")
    check_tags(project)
    assert [found.version for found in list_releases(project)] == list(reversed(VERSIONS))
    pin(project, "latest")
    assert pinned_anchor(project.root)["ref"] == ref_of("v1.0.0")
    assert _candidates(project, list_releases(project), project.params) is None, "git's history is cut off"


def test_where_the_remote_does_not_answer_only_a_shallow_clone_is_refused(chain, tmp_path):
    run(chain, "git", "remote", "add", "origin", str(tmp_path / "gone.git"))
    check_tags(Project(chain))
    project = shallow(chain, tmp_path / "clone")
    run(project.root, "git", "remote", "set-url", "origin", str(tmp_path / "gone.git"))
    with pytest.raises(UserError, match=r"this clone is shallow.*`git fetch --unshallow --tags`"):
        check_tags(project)


def test_a_new_class_begins_a_chain_with_a_major_version(chain):
    project = Project(chain)
    before = list_releases(project)
    assert _begins(project, before, "minor") is None, "they can be compared"
    model = project.root / "models/student/model.json"
    facts = json.loads(model.read_text())
    model.write_text(json.dumps(facts | {"classes": ["a", "b", "yak"]}))
    begins = "the classes are not those of v1.2.0"
    with pytest.raises(UserError, match=rf"{begins}, so that .* `crt release --bump major`"):
        _begins(project, before, "minor")
    assert _begins(project, before, "major") == begins
    assert _begins(project, [], "minor") is None
    model.write_text(json.dumps(facts | {"image_size": 16}))
    assert _begins(project, before, "major") == "the image size is 16, and 8 in v1.2.0"
