"""`crt verify` on honest, forged and hostile releases."""

import json
import os
import pickle
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from releases import COUNT, SPEC, edit_json, edit_rows, make_release
from scipy.special import ndtri
from typer.testing import CliRunner

from crt.certification.bounds import lower_bound, radius
from crt.cli import app
from crt.commands.verify import verify
from crt.data.store import open_store
from crt.errors import UserError
from crt.verification.untrusted import ARGUMENTS, check_network, open_release

MINUTES = 1.0
PASSES = (
    COUNT * 432 + 40_000
)  # so many are said to fit into the time: every row again, and 1,000 draws of each


@pytest.fixture(autouse=True)
def _speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at does not depend on this machine."""
    monkeypatch.setattr("crt.commands.verify.passes_per_second", lambda *_: PASSES / 60 / MINUTES)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def release(honest: Path, tmp_path: Path) -> Path:
    """A copy of the honest release, to be changed."""
    return Path(shutil.copytree(honest, tmp_path / "release"))


def checked(release: Path, capsys: pytest.CaptureFixture[str], images: Path | None = None) -> dict:
    capsys.readouterr()
    held = verify(release, "student", images, MINUTES, "cpu", json_output=True)
    found = json.loads(capsys.readouterr().out)
    assert held == found["verified"]
    return found


def test_an_honest_release(honest, capsys):
    found = checked(honest, capsys)
    assert found["verified"]
    assert found["repeated"] == {"same": COUNT, "close": 0, "different": 0}
    assert found["refuted"] == []
    assert 20 <= found["asked"] < COUNT  # what is misclassified claims nothing
    assert found["share"] == 1 / COUNT  # every row was looked at
    assert found["draws"] == 400  # of a claim no more than n
    assert 0 < found["unseen"] < 0.25
    table = found["table"]["certified_accuracy"]
    assert table["0.0"] > table["0.25"] > 0


def test_an_adaptive_release(tmp_path, capsys):
    found = checked(make_release(tmp_path, mode="adaptive"), capsys)
    assert found["verified"]
    assert found["repeated"]["same"] == COUNT


def test_the_command_says_what_was_found(honest):
    result = CliRunner().invoke(app, ["verify", str(honest), "--minutes", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "the signer is unknown" in result.output
    assert "fresh noise: 0 of" in result.output
    assert "found with 95 % chance: a release in which" in result.output
    assert result.output.endswith("verified\n")
    assert all(len(line) < 200 for line in result.output.splitlines())


def forge(row: dict[str, str]) -> None:
    """Claim that all votes were for the label."""
    if row["idx"] == "17":
        p = 0.001 ** (1 / 400)
        row |= {"n_a": "400", "n": "400", "p_lower": repr(p), "radius": repr(float(0.25 * ndtri(p) * 0.999))}
        row |= {"status": "certified", "predict": row["label"], "correct": "1"}


def test_a_forged_row_among_honest_ones(release, capsys):
    edit_rows(release, forge)
    found = checked(release, capsys)
    assert not found["verified"]
    assert found["different"] == [17]
    assert [bad["row"] for bad in found["refuted"]] == [17]
    result = CliRunner().invoke(app, ["verify", str(release), "--minutes", "1", "--device", "cpu"])
    assert result.exit_code == 1
    assert "17.png" in result.output
    assert result.output.endswith("NOT VERIFIED\n")


def test_a_forger_who_names_another_device_is_caught_by_fresh_noise(release, capsys):
    edit_json(release / "certificates/student.json", device="a device that nobody has")
    assert checked(release, capsys)["verified"]
    edit_rows(release, forge)
    found = checked(release, capsys)
    assert not found["verified"]
    assert [bad["row"] for bad in found["refuted"]] == [17]


def test_a_vote_more_is_close_on_another_device_and_different_on_this(release, capsys):
    def more(row):
        if row["idx"] == "17":
            votes = int(row["n_a"]) - 1
            p = lower_bound(votes, 400, 0.001) * (1 - 1e-10)
            row |= {"n_a": str(votes), "p_lower": repr(p), "radius": repr(radius(p, 0.25))}

    edit_rows(release, more)
    assert checked(release, capsys)["different"] == [17]
    edit_json(release / "certificates/student.json", device="a device that nobody has")
    found = checked(release, capsys)
    assert found["verified"]
    assert found["repeated"] == {"same": COUNT - 1, "close": 1, "different": 0}


def test_a_forged_label(release, capsys):
    relabeled = []

    def relabel(row):
        if row["status"] == "misclassified":
            row["label"] = row["predict"]
            relabeled.append(int(row["idx"]))

    edit_rows(release, relabel)
    found = checked(release, capsys)
    assert not found["verified"]
    assert {0, 10} <= set(relabeled)
    assert found["mislabeled"] == relabeled


def test_certificates_of_another_model(release):
    edit_json(release / "certificates/student.json", model_fingerprint="0" * 64)
    with pytest.raises(UserError, match=r"of another model \(fingerprint 0000"):
        open_release(release, "student")


def test_the_images_alone_are_enough(release, tmp_path, capsys):
    test = open_store(release / "prepared/test")
    for number, label in enumerate(test.labels):
        file = tmp_path / "images" / SPEC.classes[label] / f"any-{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.images[number, :, :, 0]).save(file)
    shutil.rmtree(release / "prepared")
    found = checked(release, capsys, tmp_path / "images")
    assert found["verified"]
    assert found["repeated"]["same"] == COUNT
    next((tmp_path / "images/bright").iterdir()).unlink()
    found = checked(release, capsys, tmp_path / "images")
    assert found["absent"] == 1
    assert not found["verified"]  # who lacks an image cannot tell it from one that was made up


@pytest.mark.parametrize("of_files", [False, True])
def test_one_easy_image_as_the_whole_table(release, tmp_path, capsys, of_files):
    test = open_store(release / "prepared/test")
    for number, label in enumerate(test.labels):
        file = tmp_path / "images" / SPEC.classes[label] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.images[number, :, :, 0]).save(file)
    best = {}

    def keep(row):
        if row["correct"] == "1":
            best.update(row)

    edit_rows(release, keep)
    edit_rows(release, lambda row: row.update(best | {"idx": row["idx"]}))
    found = checked(release, capsys, tmp_path / "images" if of_files else None)
    assert found["absent"] == COUNT - 1
    assert not found["verified"]


def test_a_bound_that_is_not_of_its_votes_on_another_device(release, capsys):
    """The votes are nearly those, and the fresh draws are too few to tell."""
    edit_json(release / "certificates/student.json", device="a device that nobody has")

    def forge(row):
        if row["status"] == "certified" and int(row["n_a"]) >= 399:
            p = 0.9999
            row |= {"n_a": "400", "p_lower": repr(p)}
            row |= {"radius": repr(float(0.25 * ndtri(p) * 0.999))}

    edit_rows(release, forge)
    assert checked(release, capsys)["different"]


def test_rows_that_take_more_draws_than_they_say_end_the_check(tmp_path, capsys):
    """A million rows of one draw each, in truth of ten million, would take for ever."""
    release = make_release(tmp_path, mode="adaptive", n=20_000, radii=[0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])

    def shorten(row):
        if row["status"] == "certified":
            row |= {"n": "1", "n_a": "1"}

    edit_rows(release, shorten)
    assert not checked(release, capsys)["verified"]


def test_other_images_are_refused(release, tmp_path):
    (tmp_path / "other/dark").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "other/dark/0.png")
    with pytest.raises(UserError, match="none of 40 images, chosen at random from the certificates, is in"):
        verify(release, "student", tmp_path / "other", MINUTES, "cpu", json_output=True)


@pytest.mark.parametrize(
    ("arch", "arguments", "said"),
    [
        ("hf-hub:evil/model", {}, "only plain names of timm's networks"),
        ("local-dir:/tmp/evil", {}, "only plain names of timm's networks"),
        ("../../evil", {}, "only plain names of timm's networks"),
        ("resnet_evil", {}, "is no timm model"),
        (
            "resnet18",
            {"pretrained_cfg_overlay": {"file": "/etc/passwd"}},
            "arch_args set 'pretrained_cfg_overlay'",
        ),
        ("resnet18", {"checkpoint_path": "evil.pth"}, "arch_args set 'checkpoint_path'"),
        ("resnet18", {"block": "os.system"}, "arch_args set 'block'"),
        ("resnet18", {"layers": [10**9]}, "arch_args set layers"),
        ("resnet18", {"layers": [1000, 1000, 1, 1]}, "more than 1024 blocks"),
        ("resnet18", {"channels": "64"}, "arch_args set channels"),
        ("resnet18", {"channels": [1] * 65}, "arch_args set channels"),
        ("resnet18", {"channels": [float("nan")]}, "arch_args set channels"),
        ("ensemble", {"members": []}, "without a list of 1 to 16 members"),
        ("ensemble", {"members": [{"arch": "ensemble"}]}, "of what is no network"),
        ("ensemble", {"members": [{"arch": "resnet18", "arch_args": {"block": 1}}]}, "arch_args set 'block'"),
        ("ensemble", {"members": [{"arch": "resnet18", "arch_args": [1]}]}, "of what is no network"),
        ("ensemble", {"members": [{"arch": "resnet18", "spec": 1}]}, "of what is no network"),
        ("ensemble", {"members": [{"arch": "resnet18", "mean": "abc"}]}, "of what is no network"),
    ],
)
def test_only_plain_networks_are_built(arch, arguments, said):
    with pytest.raises(UserError, match=said):
        check_network(arch, arguments)


def test_the_networks_of_this_project_are_plain():
    import yaml

    for file in Path("conf/network").glob("*/*.yaml"):
        assert set(yaml.safe_load(file.read_text()).get("arch_args") or {}) <= ARGUMENTS, file


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.json", {"arch_args": {"channels": [60000] * 4}}, "it is not built"),
        ("model.json", {"arch_args": {"channels": [16] * 4}}, "does not fit the network"),
        ("model.json", {"image_size": 4096}, "image_size is 4096"),
        ("model.json", {"arch": "hf-hub:evil/model"}, "only plain names"),
        ("student.json", {"batch_size": 10**12}, "no valid 'batch_size'"),
        ("model.json", {"mean": [0.0] * 100_000}, "no mean and std for each channel"),
        (
            "model.json",
            {
                "arch": "swin_tiny_patch4_window7_224",
                "image_size": 2048,
                "arch_args": {"img_size": 2048, "window_size": 256},
            },
            "bytes: it is not built",
        ),
        ("student.json", {"n": 10**12}, "no valid 'n'"),
        ("student.json", {"sigma": 10**400}, "too large"),
        ("student.json", {"alpha": 10**400}, "no valid 'alpha'"),
        ("student.json", {"radii": [float("nan")]}, "no valid 'radii'"),
        ("student.json", {"model_fingerprint": "\u001b[2J"}, "of another model"),
        ("student.json", {"radii": ["\u001b[2J"]}, "no valid 'radii'"),
        ("student.json", {"precision": "float8"}, "no valid 'precision'"),
        ("student.json", {"noise": {"kind": "my own"}}, "of another kind"),
        (
            "student.json",
            {"noise": {"kind": "integer", "bits": "Philox4x64-10", "seed": "zero"}},
            "the seed 'zero'",
        ),
    ],
)
def test_poisoned_values(release, name, change, said):
    folder = "models/student" if name == "model.json" else "certificates"
    edit_json(release / folder / name, **change)
    with pytest.raises(UserError, match=said) as error:
        open_release(release, "student")
    assert "\x1b" not in str(error.value)


def test_a_table_of_ten_million_rows_is_not_read(release):
    with (release / "certificates/student.tsv").open("r+b") as file:
        file.truncate(1_500_000_000)  # sparse
    with pytest.raises(UserError, match=r"has 1,500,000,000 bytes: at most 268,435,456 are read"):
        open_release(release, "student")


def test_rows_of_more_draws_than_n(release):
    edit_rows(release, lambda row: row.update(n="1000000"))
    with pytest.raises(UserError, match="rows of more draws than its n"):
        open_release(release, "student")


def test_a_header_of_many_columns_is_not_read(release):
    (release / "certificates/student.tsv").write_text("a\t" * 100_000 + "\n")
    with pytest.raises(UserError, match="is no table of certificates"):
        open_release(release, "student")


def test_control_characters_of_a_damaged_cell(release):
    edit_rows(release, lambda row: row.update(predict="\x1b[2J"))
    with pytest.raises(UserError, match=r"predict \?\[2J") as error:
        open_release(release, "student")
    assert "\x1b" not in str(error.value)


def test_damaged_arrays_of_test_images(release):
    images, labels = release / "prepared/test/images.npy", release / "prepared/test/labels.npy"
    header = b"(" * 9_000 + b"\n"
    good = images.read_bytes()
    images.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match="is damaged"):
        verify(release, "student", None, MINUTES, "cpu", json_output=True)
    with images.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(UserError, match="holds no arrays"):
        verify(release, "student", None, MINUTES, "cpu", json_output=True)
    images.write_bytes(good)
    np.save(labels, np.array(["x"] * COUNT))
    with pytest.raises(UserError, match="holds no arrays"):
        verify(release, "student", None, MINUTES, "cpu", json_output=True)


def test_files_that_are_none(release):
    table = release / "certificates/student.tsv"
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(UserError, match="is no regular file"):
        open_release(release, "student")
    table.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        open_release(release, "student")


@pytest.mark.parametrize("name", ["models/student/model.json", "certificates/student.json"])
def test_nested_values(release, name):
    (release / name).write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(UserError, match=r"too many nested values|lacks"):
        open_release(release, "student")


def test_a_pickle_is_not_opened(release, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (release / "models/student/model.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="is damaged"):
        open_release(release, "student")
    assert not (tmp_path / "executed").exists()


def test_a_hostile_repository_is_not_asked_anything(release, tmp_path, capsys, monkeypatch):
    """Neither its hooks and filters nor its remotes are used: no process, no connection."""
    subprocess.run(["git", "init", "-q", release], check=True)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'executed'}\n")
    hook.chmod(0o755)
    with (release / ".git/config").open("a") as file:
        file.write(f"[core]\n\tfsmonitor = {hook}\n\thooksPath = {tmp_path}\n")
    (release / ".dvc").mkdir()
    (release / ".dvc/config").write_text(
        "['remote \"evil\"']\n    url = ssh://evil.example.org/\n[core]\n    remote = evil\n"
    )
    (release / "dvc.yaml").write_text(f"stages:\n  evil:\n    cmd: {hook}\n")

    def refuse(*arguments, **named):
        raise AssertionError("a release made the verifier do this")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(release)
    assert checked(release, capsys)["verified"]
    assert not (tmp_path / "executed").exists()


def test_names_do_not_control_the_terminal(release, capsys):
    edit_rows(release, lambda row: row.update(name="\x1b[2Jevil"))
    edit_rows(release, forge)
    assert not verify(release, "student", None, MINUTES, "cpu", json_output=False)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "?[2Jevil" in printed
