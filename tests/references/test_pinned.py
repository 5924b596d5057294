"""A pinned release comes with its history and its anchor's certificates, from the commits of their tags."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from crt import history
from crt.errors import UserError
from crt.history import Entry, read_history
from crt.references import pinned
from crt.references.pinned import copy_baseline, copy_pinned


def entry(**known) -> dict:
    results = {"arch": "resnet18", "sigma": 0.25, "acr": 0.4, "certified_accuracy": {"0.0": 0.9}}
    return dict.fromkeys(Entry.model_fields) | results | known


class Registry:
    """A git + DVC repository whose releases are commits."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "-q")
        (root / ".dvc").mkdir()
        (root / ".dvc/config").touch()
        (root / "dvc.yaml").write_text("artifacts:\n  student:\n    path: models/student\n    type: model\n")

    def git(self, *arguments: str, day: int = 1) -> None:
        date = f"2025-01-0{day}T12:00:00"
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments],
            cwd=self.root,
            check=True,
            capture_output=True,
            env={"PATH": "/usr/bin:/bin", "GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date},
        )

    def release(self, version: str, day: int = 1, past: bytes | None = None, **facts) -> None:
        files = {
            "models/student/model.json": f"model {version}",
            "models/student/model.safetensors": f"weights {version}",
            "certificates/student.tsv": f"certificates {version}",
            "certificates/student.json": f"settings {version}",
        }
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        if past is not None:
            path = self.root / "results/gate/history.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(past)
        self.git("add", "-A")
        self.git("commit", "-qm", version)
        message = f"{version}\n\n{json.dumps(facts)}"
        self.git("tag", "-a", f"student@{version}", "-m", message, day=day)

    def anchor(self, version: str) -> str:
        digest = hashlib.sha256(f"certificates {version}".encode()).hexdigest()
        return f"registry:student@{version}#sha256={digest}"


def content(*entries: dict) -> bytes:
    return json.dumps({"format": 1, "releases": entries}).encode()


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    made = Registry(tmp_path_factory.mktemp("registry") / "repo")
    made.release("v0.9.0")  # before releases had a history
    made.release("v1.0.0", past=content(entry()), day=2, candidates=1)
    made.release("v1.1.0", past=content(entry(version="v1.0.0"), entry(acr=0.5)), day=3, begins="a test")
    made.release("v1.2.0", past=b'{"format": 1, "releases": [{"acr": 1}]}')
    made.release("v1.3.0", past=content(entry()), candidates="many")
    return made


def fetched(registry: Registry, tmp_path: Path, version: str, anchor: str | None = None) -> Path:
    (tmp_path / "work").mkdir(exist_ok=True)
    copy_baseline(f"registry:student@{version}", anchor, registry.root, tmp_path / "out", tmp_path / "work")
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


MODEL = ["model.json", "model.safetensors"]
ANCHOR = ["anchor/certificates.json", "anchor/certificates.tsv", "anchor/model.json"]


def test_a_release_with_its_history_and_its_anchor(registry, tmp_path):
    out = fetched(registry, tmp_path, "v1.1.0", registry.anchor("v0.9.0"))
    assert names(out) == [*ANCHOR, "history.json", *MODEL]
    assert (out / "model.safetensors").read_text() == "weights v1.1.0"
    assert [(out / name).read_text() for name in ANCHOR] == [
        "settings v0.9.0",
        "certificates v0.9.0",
        "model v0.9.0",
    ]
    first, last = read_history(out / "history.json").releases
    assert (first.version, first.date, first.acr) == ("v1.0.0", None, 0.4)
    assert (last.version, last.date, last.acr, last.begins) == ("v1.1.0", "2025-01-03", 0.5, "a test")
    assert not (tmp_path / "work").exists()


def test_the_start_of_training_is_the_model_alone(registry, tmp_path):
    (tmp_path / "work").mkdir()
    copy_pinned("registry:student@v1.1.0", registry.root, tmp_path / "out", tmp_path / "work")
    assert names(tmp_path / "out") == MODEL


def test_a_release_without_a_history_and_a_model_that_is_none(registry, tmp_path):
    assert names(fetched(registry, tmp_path, "v0.9.0")) == MODEL
    ref = "path:models/student#sha256=" + hashlib.sha256(b"weights v1.3.0").hexdigest()
    (tmp_path / "work").mkdir()
    copy_baseline(ref, None, registry.root, tmp_path / "other", tmp_path / "work")
    assert names(tmp_path / "other") == MODEL


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("v1.2.0", r"registry:student@v1\.2\.0 cannot be the baseline, since its history .*\(releases\.0\."),
        ("v1.3.0", r"registry:student@v1\.3\.0 cannot be the baseline, since its history .*\(candidates: "),
    ],
)
def test_a_damaged_history_is_refused(registry, tmp_path, version, said):
    with pytest.raises(UserError, match=said) as error:
        fetched(registry, tmp_path, version)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_huge_history_is_not_fetched(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MOST_BYTES", 50)
    with pytest.raises(UserError, match=r"results/gate/history\.json of .* has \d+ bytes, more than 50"):
        fetched(registry, tmp_path, "v1.0.0")


def test_other_certificates_than_pinned_are_refused(registry, tmp_path, monkeypatch):
    other = registry.anchor("v1.0.0").replace("v1.0.0", "v0.9.0")
    with pytest.raises(UserError, match=r"certificates of the anchor registry:student@v0\.9\.0 have SHA-256"):
        fetched(registry, tmp_path, "v1.0.0", other)
    monkeypatch.setitem(pinned.MOST_BYTES, "certificates.tsv", 5)
    with pytest.raises(UserError, match=r"certificates/student\.tsv of .* more than 5: choose another"):
        fetched(registry, tmp_path, "v1.0.0", registry.anchor("v0.9.0"))


def test_an_anchor_that_is_not_there(registry, tmp_path):
    with pytest.raises(UserError, match=r"no version 'v7\.0\.0': choose one of v0\.9\.0, v1\.0\.0"):
        fetched(registry, tmp_path, "v1.0.0", registry.anchor("v7.0.0"))
