"""Releases and pins on real git repositories; the whole flow is in tests/pipeline/test_retraining.py."""

import json
import re

import pytest
import yaml
from data_repo import assert_composed, choice, commit, delivery, listed_drops, run

import crt.project.repository as repository
from crt.commands.compose import compose
from crt.commands.ingest import ingest
from crt.commands.pin import pin, pin_newest
from crt.commands.release import _check_author, _check_gate, _register, release
from crt.commands.releases import show_releases
from crt.config import load
from crt.errors import UserError
from crt.project import Project
from crt.project.releases import find_release, list_releases, next_version

HASHES = {"v1.0.0": "1" * 64, "v1.9.0": "2" * 64, "v1.10.0": "3" * 64}


def tag(repo, name: str, message: str) -> None:
    author = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    run(repo, "git", *author, "tag", "-a", name, "-m", message)


@pytest.fixture
def released(repo):
    """The repository with three releases; the tags alone."""
    for version, digest in HASHES.items():
        by = ("-c", "user.name=t", "-c", "user.email=t@e.org")
        run(repo, "git", *by, "commit", "-q", "--allow-empty", "-m", version)
        tag(repo, f"student@{version}", f"a student\n\n{json.dumps({'weights_sha256': digest})}\n")
    tag(repo, "teacher@v7.0.0", "another artifact")
    return repo


def pins(repo) -> set[str | None]:
    """What conf/choice.yaml and params.yaml pin, as baseline and as init; all settings agree on it."""
    assert_composed(repo)
    chosen, params = choice(repo), load(repo / "params.yaml")
    refs = {chosen.get("pinned", {}).get(role, {}).get("ref") for role in ("init", "baseline")}
    refs |= {params.pinned[role].ref if role in params.pinned else None for role in ("init", "baseline")}
    pinned = refs != {None}
    assert ("baseline" in params.certified) == pinned
    assert (params.start.init, params.gate.against) == (
        ("init", "baseline") if pinned else ("teacher", "teacher")
    )
    return refs


def test_versions_are_sorted_as_versions_and_known_by_their_weights(released):
    found = list_releases(Project(released))
    assert [r.version for r in found] == ["v1.10.0", "v1.9.0", "v1.0.0"]
    assert found[0].ref == f"registry:student@v1.10.0#sha256={'3' * 64}"
    assert found[0].commit == run(released, "git", "rev-parse", "HEAD").strip()


def test_a_withdrawn_version_is_passed_over_and_never_used_again(released):
    assert next_version(Project(released), "patch") == "v1.10.1"
    tag(released, "student@v1.10.0!", "withdrawn")
    assert [r.version for r in list_releases(Project(released))] == ["v1.9.0", "v1.0.0"]
    assert next_version(Project(released), "minor") == "v1.11.0"
    assert next_version(Project(released), "major") == "v2.0.0"


def test_a_tag_made_by_hand_is_a_release_without_facts(released, capsys):
    tag(released, "student@v2.0.0", "by hand")
    assert list_releases(Project(released))[0].ref == "registry:student@v2.0.0"
    show_releases(Project(released))
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "v2.0.0"


@pytest.mark.slow
def test_pinning_changes_the_pins_alone(released, capsys):
    before = yaml.safe_load((released / "params.yaml").read_text())
    pin(Project(released), "v1.9.0")
    assert pins(released) == {f"registry:student@v1.9.0#sha256={'2' * 64}"}
    assert "v1.9.0" in capsys.readouterr().out
    for same in ("student@v1.9.0", "registry:student@v1.9.0"):
        pin(Project(released), "none")
        pin(Project(released), same)
        assert pins(released) == {f"registry:student@v1.9.0#sha256={'2' * 64}"}
    pin(Project(released), "none")
    assert pins(released) == {None}
    assert yaml.safe_load((released / "params.yaml").read_text()) == before


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("v3.0.0", r"no release 'v3\.0\.0': choose one of v1\.10\.0, v1\.9\.0, v1\.0\.0"),
        ("nowhere:x", "unknown form"),
        ("registry:student@v3.0.0", r"no release 'v3\.0\.0'"),
        ("path:nowhere", "is no file and holds no model"),
    ],
)
def test_what_cannot_be_pinned_changes_nothing(released, what, said):
    with pytest.raises(UserError, match=said):
        pin(Project(released), what)
    assert pins(released) == {None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sigma=0.5", r"sigma is 0\.5, and 0\.25 in v1\.10\.0"),
        ("data.image_size=16", r"the image size is 16, and 8 in v1\.10\.0"),
    ],
)
def test_what_a_release_was_not_made_for_is_not_compared_with_it(released, tmp_path, capsys, change, said):
    pin(Project(released), "latest")
    compose(Project(released), ["teacher.epochs=7"])
    assert len(pins(released)) == 1
    assert pins(released) != {None}
    compose(Project(released), [change])
    assert pins(released) == {None}
    out = capsys.readouterr().out
    assert re.search(
        rf"student@v1\.10\.0 is no longer pinned: {said}; release with `crt release --bump major`", out
    )
    with pytest.raises(UserError, match=rf"{said}, so it can be neither compared with nor started from"):
        pin(Project(released), "v1.10.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Project, "dvc", lambda *_, **__: "")
        assert pin_newest(Project(released), Project(released).choice) is None
    assert re.search(f"the newest release is not pinned: {said}", capsys.readouterr().out)


def test_a_release_of_other_classes(released, capsys):
    (released / "results/prepare").mkdir(parents=True)
    names = {str(number): 36 for number in range(9)} | {"nine": 36}
    (released / "results/prepare/test.json").write_text(json.dumps({"classes": names}))
    commit(released)
    tag(released, "student@v2.0.0", f"a student\n\n{json.dumps({'weights_sha256': '4' * 64})}\n")
    with pytest.raises(UserError, match=r"the classes are not those of v2\.0\.0, so it can"):
        pin(Project(released), "v2.0.0")


def test_without_a_release_there_is_none_to_pin(repo, capsys):
    with pytest.raises(UserError, match="no release yet: make one with `crt release`"):
        pin(Project(repo), "latest")
    assert pin_newest(Project(repo), Project(repo).choice) is None
    show_releases(Project(repo))
    assert "no release yet" in capsys.readouterr().out


def test_ingest_pins_the_newest_and_says_so(released, tmp_path, capsys):
    ingest(Project(released), delivery(tmp_path / "in"), "2025-04")
    assert "student@v1.10.0 is pinned" in capsys.readouterr().out
    assert pins(released) == {f"registry:student@v1.10.0#sha256={'3' * 64}"}
    assert pin_newest(Project(released), Project(released).choice) is None  # it is


def test_a_path_is_pinned_by_its_hash_and_stays(released):
    """Else the pipeline's own output could be the baseline that it is compared with."""
    (released / "elsewhere.safetensors").write_bytes(b"weights")
    with pytest.raises(
        UserError, match=r"can change.*write it as path:elsewhere\.safetensors#sha256="
    ) as error:
        pin(Project(released), "path:elsewhere.safetensors")
    ref = str(error.value).split("write it as ")[1]
    pin(Project(released), ref)
    assert pins(released) == {ref}
    assert pin_newest(Project(released), Project(released).choice) is None
    assert pins(released) == {ref}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["choose", "params.yaml"])
def test_an_ingest_killed_at_the_pins_is_ended_by_the_same_command(released, tmp_path, monkeypatch, where):
    source = delivery(tmp_path / "in")

    class Kill(BaseException):
        pass

    def kill(*_, **__):
        raise Kill

    write = repository.write_text

    def between(path, text):
        if path.name == "params.yaml":
            raise Kill
        write(path, text)

    with monkeypatch.context() as patch:
        if where == "choose":
            patch.setattr(Project, "choose", kill)
        else:
            patch.setattr(repository, "write_text", between)
        with pytest.raises(Kill):
            ingest(Project(released), source, "2025-04")
    ingest(Project(released), source, "2025-04")
    assert pins(released) == {f"registry:student@v1.10.0#sha256={'3' * 64}"}
    assert listed_drops(released)[-1] == "2025-04"


@pytest.mark.parametrize(
    ("verdict", "earlier", "said"),
    [
        ("pass", True, None),
        ("no baseline", False, None),
        ("no baseline", True, "`crt pin v1.10.0`"),
        ("undecided", True, "add to the test set (data/test) or accept wider margins (gate.margin"),
        ("fail", True, "is fail, so this is no release"),
        (None, False, "run `dvc repro`"),
    ],
)
def test_which_verdicts_let_a_student_pass(released, verdict, earlier, said):
    before = list_releases(Project(released)) if earlier else []
    gate = {"verdict": verdict, "sentences": ["Why."]}
    config = load(released / "params.yaml")
    if said is None:
        _check_gate(gate, before, config)
        return
    with pytest.raises(UserError) as error:
        _check_gate(gate, before, config)
    assert said in str(error.value)


@pytest.mark.parametrize(("certify", "most"), [({"stride": 2}, None), ({"max_images": 30}, 30)])
def test_where_images_are_left_out_more_of_them_are_the_remedy(released, certify, most):
    config = load(released / "params.yaml")
    config = config.model_copy(update={"certify": config.certify.model_copy(update=certify)})
    with pytest.raises(UserError, match=r"certify more test images \(certify\.stride, certify\.max_images\)"):
        _check_gate({"verdict": "undecided", "images": 30}, list_releases(Project(released)), config)


def author(repo):
    for key, value in (("user.name", "t"), ("user.email", "t@example.org")):
        run(repo, "git", "config", key, value)


def test_a_release_has_an_author(repo, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    with pytest.raises(UserError, match=r"whose release this is: `git config user\.name"):
        release(Project(repo))


def test_the_author_may_stand_in_the_environment(repo, monkeypatch):
    """As CI gives it: git itself tags with it."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    for part, value in (("NAME", "ci"), ("EMAIL", "ci@example.org")):
        monkeypatch.setenv(f"GIT_COMMITTER_{part}", value)
    author = _check_author(Project(repo))
    assert author == ("ci", "ci@example.org")
    tagged = _register(
        Project(repo), "v1.0.0", {"arch": "x", "acr": 0, "certified_accuracy": {}, "gate": "pass"}, author
    )
    assert run(
        repo, "git", "for-each-ref", "--format=%(taggername) %(taggeremail)", f"refs/tags/{tagged}"
    ) == ("ci <ci@example.org>\n")


def test_a_candidate_is_not_the_latest_and_can_be_named(released, capsys):
    tag(released, "student@v2.0.0-rc.1", "a candidate")
    assert list_releases(Project(released))[0].version == "v1.10.0"
    assert find_release(Project(released), "latest").version == "v1.10.0"
    assert find_release(Project(released), "v2.0.0-rc.1").version == "v2.0.0-rc.1"
    assert next_version(Project(released), "minor") == "v1.11.0"
    pin(Project(released), "latest")
    assert "student@v1.10.0" in capsys.readouterr().out


def test_a_tag_without_a_message_is_named_with_the_remedy(released, capsys):
    run(released, "git", "tag", "student@v3.0.0")
    show_releases(Project(released))
    said = capsys.readouterr().err
    assert "student@v3.0.0 has no message, so it is no release" in said
    with pytest.raises(UserError, match=r"student@v3\.0\.0 has no message"):
        pin(Project(released), "v3.0.0")
    author(released)
    remedy = re.search(r"`git (.*)`", said)[1].replace("MESSAGE", "by hand").split(" -m ")
    run(released, "git", *remedy[0].split(), "-m", remedy[1])
    assert find_release(Project(released), "v3.0.0").tag == "student@v3.0.0"


def test_what_dvc_gc_has_removed_is_not_pinned(released):
    """The commit records a model that neither the cache nor a remote has."""
    digest = "0123456789abcdef0123456789abcdef.dir"
    out = {"path": "models/student", "hash": "md5", "md5": digest, "size": 1, "nfiles": 2}
    (released / "dvc.lock").write_text(
        yaml.safe_dump({"schema": "2.0", "stages": {"student": {"cmd": "x", "outs": [out]}}})
    )
    commit(released)
    tag(released, "student@v2.0.0", "a student")
    with pytest.raises(
        UserError, match=r"student@v2.0.0 cannot be pinned, since its model is gone .*--all-tags"
    ):
        pin(Project(released), "v2.0.0")
    assert pins(released) == {None}


def test_a_metric_that_git_does_not_know_is_not_released(repo):
    author(repo)
    (repo / "results").mkdir()
    (repo / "results/new.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be released: `git commit` results/new\.json"):
        release(Project(repo))


def test_a_release_said_again_is_no_other(released, monkeypatch, capsys):
    author(released)
    monkeypatch.setattr(Project, "dvc", lambda *_, **__: "{}")  # as where `dvc status` finds all up to date
    tags = run(released, "git", "tag")
    release(Project(released))
    assert "this commit is student@v1.10.0 already" in capsys.readouterr().out
    assert run(released, "git", "tag") == tags
    tag(released, "student@v1.10.0!", "withdrawn")
    with pytest.raises(UserError, match=r"this commit is v1\.10\.0, which was withdrawn"):
        release(Project(released))


def test_what_is_not_committed_is_not_released(repo):
    author(repo)
    (repo / "params.yaml").write_text((repo / "params.yaml").read_text() + "# a remark\n")
    with pytest.raises(
        UserError, match=r"what is not committed cannot be released: `git commit` params\.yaml"
    ):
        release(Project(repo))
    assert run(repo, "git", "tag") == ""


@pytest.mark.real_dvc
def test_what_is_not_reproduced_is_not_released(repo):
    author(repo)
    with pytest.raises(UserError, match="`dvc repro`"):
        release(Project(repo))
    assert run(repo, "git", "tag") == ""


def test_outside_a_git_repository(tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(UserError, match="is no git repository: releases are tags of one"):
        list_releases(Project(tmp_path))
