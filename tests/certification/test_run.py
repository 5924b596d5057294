"""A whole test set: the file, kills, a full disk, other settings, several processes."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from certification_toy import COUNT, INFO, OPTIONS, SIGMA, ToyModel, certify, store, without_time
from torch import Tensor

import crt
from crt.certification import journal
from crt.certification.run import certify_store, chosen_images
from crt.certification.smoothing import SmoothedClassifier
from crt.errors import UserError
from crt.evaluation.certificates import read_certificates

TOY = Path(__file__).with_name("certification_toy.py")


def test_the_file_says_what_the_classifier_says(tmp_path: Path) -> None:
    """Row by row against the library's three-line use; the reader of the evaluation accepts it."""
    table = read_certificates(certify(tmp_path))
    settings = {"model_fingerprint": "m" * 64, "sigma": 0.5, "mode": "exact", "alpha": 0.01, "n": 1_000}
    smoothed = SmoothedClassifier(ToyModel(), 0.5, n0=20, n=1_000, alpha=0.01, batch_size=64, device="cpu")
    data = store()
    labeled = zip(data.images, data.labels.tolist(), strict=True)
    results = smoothed.certify_pixels(labeled, json.dumps(settings))
    expected = [certificate for _, certificate, _ in sorted(results)]
    assert table.idx.tolist() == list(range(COUNT))
    assert table.name == data.names
    assert table.label.tolist() == data.labels.tolist()
    for place, certificate in enumerate(expected):
        assert table.status[place] == certificate.status
        assert table.predict[place] == certificate.predict
        assert table.radius[place] == (certificate.radius or 0.0)
        assert table.p_lower[place] == (certificate.p_lower or 0.0)
        assert (table.n_a[place], table.n[place]) == (certificate.n_a, certificate.n)
    assert {"certified", "misclassified"} <= set(table.status.tolist())
    facts = table.settings
    assert facts["forward_passes"] == sum(20 + n for n in table.n)  # 20 that select
    assert facts["seconds"] == pytest.approx(table.seconds.sum(), abs=1e-4)
    assert facts["model_fingerprint"] == "m" * 64
    assert facts["data_fingerprint"] == "t" * 64
    assert facts["device"].startswith("cpu")
    assert facts["warnings"] == []
    assert facts["batch_size"] == 64
    assert facts["other_batch_size"] == {"rows": 128, "batch_size": 32, "differing": 0}
    assert facts["noise"]["kind"] == "integer"
    assert facts["noise"]["depends_on"] == ["model_fingerprint", "sigma", "mode", "alpha", "n", "pixels"]
    assert facts["noise"]["seed"] is None
    assert 0 < facts["noise"]["total_variation"] < 1e-13


@pytest.mark.slow
def test_adaptive_radii_are_those_asked_for(tmp_path: Path) -> None:
    table = read_certificates(certify(tmp_path, mode="adaptive", n=20_000))
    assert set(table.radius.tolist()) <= {0.0, 0.25, 0.5}
    assert len(set(table.n.tolist())) > 4
    exact = read_certificates(certify(tmp_path, n=20_000))
    assert table.settings["forward_passes"] < exact.settings["forward_passes"] / 3
    assert (exact.right_at(0.25) & ~table.right_at(0.25)).sum() <= 1


def test_radii_out_of_reach_are_a_warning_of_the_certificates(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"radius 5 is beyond what n=1,000 draws certify at sigma 0\.5"):
        out = certify(tmp_path, mode="adaptive", radii=[0.0, 0.25, 5.0], max_images=1)
    warnings = json.loads(out.with_suffix(".json").read_text())["warnings"]
    assert sum("radius 5" in warning for warning in warnings) == 1


def test_stride_and_max_images(tmp_path: Path) -> None:
    whole = without_time(certify(tmp_path))
    every = whole[1::3]
    chosen = sorted(row[-1] for row in every)[:5]  # the smallest hashes
    fewer = [row for row in every if row[-1] in chosen]
    assert without_time(certify(tmp_path, stride=3, max_images=5)) == [whole[0], *fewer]
    assert without_time(certify(tmp_path, max_images=10_000)) == whole


def test_a_subset_is_a_sample_that_stays_when_the_test_set_grows() -> None:
    hashes = {idx: hashlib.sha256(f"{idx}".encode()).hexdigest() for idx in range(0, 3000, 3)}
    chosen = chosen_images(hashes, 100)
    assert chosen == sorted(set(chosen))
    assert set(chosen) < hashes.keys()
    per_tenth = np.bincount(np.array(chosen) // 300, minlength=10)  # a sorted test set of ten classes
    assert per_tenth.min() >= 3
    assert per_tenth.sum() == 100
    grown = hashes | {idx: hashlib.sha256(f"{idx}".encode()).hexdigest() for idx in range(3000, 3300, 3)}
    assert len(set(chosen_images(grown, 100)) - set(chosen)) < 20
    renumbered = {number: hashes[idx] for number, idx in enumerate(reversed(hashes))}
    assert {renumbered[number] for number in chosen_images(renumbered, 100)} == {hashes[c] for c in chosen}
    assert chosen_images(hashes, None) == chosen_images(hashes, 10_000) == list(hashes)


def test_a_class_without_a_certified_image_is_a_warning(tmp_path: Path) -> None:
    out = certify(tmp_path, max_images=1)
    found = json.loads(out.with_suffix(".json").read_text())["warnings"]
    assert len(found) == 1
    assert found[0].startswith("no image of the class ")
    assert json.loads(certify(tmp_path).with_suffix(".json").read_text())["warnings"] == []


def test_without_the_shortcut_every_image_is_estimated(tmp_path: Path) -> None:
    table = read_certificates(certify(tmp_path, skip_misclassified=False))
    assert set(table.n.tolist()) == {1_000}
    assert "misclassified" not in table.status


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"batch_size": 7}, {"batch_size": 512}, {"mode": "adaptive", "batch_size": 1}]
)
def test_batch_size_changes_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    mode = changes.get("mode", "exact")
    assert without_time(certify(tmp_path / "a", **changes)) == without_time(
        certify(tmp_path / "b", mode=mode)
    )


def test_a_seed_given_by_hand_has_other_votes_and_is_marked(tmp_path: Path) -> None:
    plain, seeded = certify(tmp_path / "a"), certify(tmp_path / "b", seed=4)
    assert without_time(plain) != without_time(seeded)
    noise = json.loads(seeded.with_suffix(".json").read_text())["noise"]
    assert noise["seed"] == "0x4, given by hand"
    assert noise["depends_on"][-2:] == ["seed", "pixels"]


@pytest.mark.parametrize("changes", [{"fingerprint": "n" * 64}, {"n": 1_001}, {"alpha": 0.011}])
def test_the_noise_is_fixed_by_model_and_settings(tmp_path: Path, changes: dict[str, object]) -> None:
    """Also where the classifier is the same: nobody can choose the noise, or train against a known one."""
    one, other = certify(tmp_path / "a"), certify(tmp_path / "b", **changes)
    votes = [[row[7] for row in without_time(path)[1:]] for path in (one, other)]
    assert votes[0] != votes[1]


# interruptions


def fork(action) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return pid


KILLER = """
import json, os, random, signal, sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
import torch
from certification_toy import COUNT, certify, without_time
torch.set_num_threads(1)
folder, mode = Path(sys.argv[1]), sys.argv[2]
random.seed(0)

def start(out):
    pid = os.fork()
    if pid == 0:
        sys.stderr = open(os.devnull, "w")
        certify(out, mode=mode, n=2000)
        os._exit(0)
    return pid

began = time.perf_counter()
assert os.waitpid(start(folder / "whole"), 0)[1] == 0
duration = time.perf_counter() - began
kills, kept, cycle = 0, [], 0
# On a busy machine some kills come too early.
while kills < 15 or len({{count for count in kept if 0 < count < COUNT}}) < 3:
    out, before = folder / str(cycle), 0
    while True:
        pid = start(out)
        time.sleep(random.uniform(0.0, 0.7) * duration)
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            break
        kills += 1
        lines = "".join(path.read_text() for path in out.glob("kept/*/rows-*.jsonl")).count("status")
        assert lines >= before or (out / "certificates.tsv").exists(), "a kill lost decided images"
        before = lines
        kept.append(lines)
    assert without_time(out / "certificates.tsv") == without_time(folder / "whole/certificates.tsv")
    cycle += 1
print(json.dumps([kills, kept]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "adaptive"])
def test_killed_at_random_moments_ends_with_the_same_file(tmp_path: Path, mode: str) -> None:
    """A real SIGKILL each time, until a run gets through; again, until there were 15, at three places."""
    script = tmp_path / "killer.py"
    script.write_text(KILLER.format(here=str(TOY.parent)))
    done = subprocess.run(
        [sys.executable, script, tmp_path, mode], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    kills, kept = json.loads(done.stdout)
    assert kills >= 15
    assert len({count for count in kept if 0 < count < COUNT}) >= 3
    facts = [json.loads((tmp_path / name / "certificates.json").read_text()) for name in ("whole", "0")]
    for fact in facts:
        fact.pop("seconds")
    assert facts[0] == facts[1]


class Counting(ToyModel):
    """Counts the images of its forward passes, in all its copies, and fails after so many."""

    passed, most = 0, 10**9

    def forward(self, x: Tensor) -> Tensor:
        Counting.passed += len(x)
        if Counting.passed > Counting.most:
            raise KeyboardInterrupt
        return super().forward(x)


def passes(folder: Path, **changes: object) -> int:
    """Forward passes, in images, that certifying takes."""
    Counting.passed, Counting.most = 0, 10**9
    certify(folder, Counting(), **changes)
    return Counting.passed


def rows(folder: Path) -> list[Path]:
    return list(folder.glob("kept/*/rows-*.jsonl"))


def half_done(folder: Path) -> Path:
    Counting.passed, Counting.most = 0, 20_000
    with pytest.raises(KeyboardInterrupt):
        certify(folder, Counting())
    (path,) = rows(folder)
    assert 5 < path.read_text().count("status") < COUNT - 5
    return path


def test_decided_images_are_not_repeated(tmp_path: Path) -> None:
    half_done(tmp_path)
    whole = passes(tmp_path / "whole")
    assert 0 < passes(tmp_path) < whole - 5_000
    assert without_time(tmp_path / "certificates.tsv") == without_time(tmp_path / "whole/certificates.tsv")


# what has not changed is taken over


def test_a_grown_test_set_costs_its_new_images(tmp_path: Path) -> None:
    whole, small = store(), store()
    of_half = replace(small, images=small.images[:30], labels=small.labels[:30], fingerprint="s" * 64)
    first = passes(tmp_path, data=of_half)
    grown = passes(tmp_path, data=whole)
    fresh = passes(tmp_path / "fresh", data=whole)
    check = passes(tmp_path, data=whole)  # of the network, once in every run
    assert check < 1_000
    assert 0 < grown - check < (fresh - check) / 3  # 10 images of 40
    assert first < fresh
    assert without_time(tmp_path / "certificates.tsv") == without_time(tmp_path / "fresh/certificates.tsv")
    assert passes(tmp_path, data=of_half) == check


def test_other_reported_radii_cost_nothing_in_exact_mode(tmp_path: Path) -> None:
    passes(tmp_path)
    assert passes(tmp_path, radii=[0.0, 0.125]) < 1_000
    assert read_certificates(tmp_path / "certificates.tsv").radii == [0.0, 0.125]


def test_an_image_that_stands_twice_is_certified_once(tmp_path: Path) -> None:
    data = store()
    doubled = replace(
        data, images=np.concatenate([data.images] * 2), labels=np.concatenate([data.labels] * 2)
    )
    assert passes(tmp_path / "twice", data=doubled) == passes(tmp_path / "once", data=data)
    once, twice = (without_time(tmp_path / name / "certificates.tsv") for name in ("once", "twice"))
    assert [row[1:5] + row[6:] for row in twice[1 : COUNT + 1]] == [row[1:5] + row[6:] for row in once[1:]]
    assert [row[1:5] + row[6:] for row in twice[COUNT + 1 :]] == [row[1:5] + row[6:] for row in once[1:]]
    assert len({row[-1] for row in twice[1:]}) == COUNT
    facts = json.loads((tmp_path / "twice/certificates.json").read_text())
    assert facts["forward_passes"] == sum(20 + int(row[8]) for row in once[1:])  # the names hold a tab


def test_an_image_with_another_label_is_certified_again(tmp_path: Path) -> None:
    """The shortcut asks for the label; without it the label is none of certification's business."""
    data, other = store(), store()
    other.labels[:] = (other.labels + 1) % 3
    for shortcut in (True, False):
        folder = tmp_path / str(shortcut)
        first = passes(folder, data=data, skip_misclassified=shortcut)
        again = passes(folder, data=other, skip_misclassified=shortcut)
        assert (again > first / 10) == shortcut
        fresh = certify(tmp_path / f"fresh {shortcut}", data=other, skip_misclassified=shortcut)
        assert without_time(folder / "certificates.tsv") == without_time(fresh)


def test_code_that_decides_votes_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever certification imports from the package, apart from what changes no vote."""
    code = "import sys, crt.certification.run; print(*[m for m in sys.modules if m.startswith('crt')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    package = Path(crt.__file__).parent
    (tmp_path / "crt").mkdir()
    covered = shutil.copytree(package, tmp_path / "crt", dirs_exist_ok=True)
    monkeypatch.setattr(crt, "__file__", str(covered / "__init__.py"))
    known = journal.code_fingerprint()
    neutral = {"crt", "crt.errors", "crt.devices", "crt.processes", "crt.memory", "crt.files", "crt.config"}
    for name in sorted(set(done.stdout.split()) - neutral):
        path = covered.parent / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        text = file.read_text(encoding="utf-8")
        file.write_text(text + "changed = 1\n", encoding="utf-8")
        if not name.startswith("crt.data"):  # it gives the pixels, which are in the key themselves
            assert journal.code_fingerprint() != known, f"{name} decides votes and is not in the key"
        file.write_text(text, encoding="utf-8")
    assert journal.code_fingerprint() == known


def test_the_classifiers_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT", 2)
    for number in range(4):
        certify(tmp_path, fingerprint=str(number), max_images=1)
        os.utime(next(path for path in (tmp_path / "kept").iterdir()), (number, number))
        assert len(list((tmp_path / "kept").iterdir())) == min(number + 1, 2)


# what a kill leaves


@pytest.mark.parametrize("torn", ['[3, 0.1, {"predict": 1, "rad', "", "\x00\x00\n", "[]\n", "3\n"])
def test_torn_lines_are_passed_over(tmp_path: Path, torn: str) -> None:
    path = half_done(tmp_path)
    with path.open("a") as file:
        file.write(torn)
    assert without_time(certify(tmp_path)) == without_time(certify(tmp_path / "whole"))


def test_a_line_cut_anywhere_is_passed_over(tmp_path: Path) -> None:
    path = half_done(tmp_path)
    text = path.read_bytes()
    whole = without_time(certify(tmp_path / "whole"))
    for cut in random.Random(0).sample(range(len(text)), 5):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text[:cut])
        assert without_time(certify(tmp_path)) == whole


@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"n": 2_000}, {"alpha": 0.02}, {"sigma": 0.5000001, "allow_sigma_mismatch": True}],
    ids=str,
)
def test_other_settings_never_resume(tmp_path: Path, changes: dict[str, object]) -> None:
    half_done(tmp_path)
    assert without_time(certify(tmp_path, **changes)) == without_time(certify(tmp_path / "whole", **changes))


def test_another_model_never_resumes(tmp_path: Path) -> None:
    half_done(tmp_path)
    other = ToyModel()
    torch.nn.init.zeros_(other.linear.weight)
    out = certify(tmp_path, other, fingerprint="o" * 64)
    assert {row[2] for row in without_time(out)[1:]} <= {"-1", "0", "1", "2"}
    assert len({row[6] for row in without_time(out)[1:]}) <= 2  # all draws vote alike


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on file size makes the operating system refuse the write, as a full disk does."""
    message = tmp_path / "message"

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500, 1_500))
        try:
            certify(tmp_path)
        except UserError as error:
            message.write_text(str(error))

    assert os.waitpid(fork(limited), 0)[1] == 0
    assert "cannot be written (File too large)" in message.read_text()
    assert "finished images are kept" in message.read_text()
    assert not (tmp_path / "certificates.tsv").exists()
    (path,) = rows(tmp_path)
    kept = path.read_text().count('"status": "')
    assert kept >= 5
    assert without_time(certify(tmp_path)) == without_time(certify(tmp_path / "whole"))


# several processes


def torchrun(folder: Path, processes: int, **changes: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, str(TOY), str(folder), json.dumps(changes)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_two_processes_write_the_same_file(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr
    assert without_time(tmp_path / "two/certificates.tsv") == without_time(certify(tmp_path / "one"))


@pytest.mark.slow
def test_a_lost_process_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    done = torchrun(tmp_path, 2, victim=[1, 4])
    assert done.returncode != 0
    # Whichever is faster: torchrun, which ends the other process too, or that one, which finds itself alone.
    assert "SIGKILL" in done.stderr or "another process of this run was lost" in done.stderr
    assert not (tmp_path / "certificates.tsv").exists()
    kept = sum(path.read_text().count('"status"') for path in rows(tmp_path))
    assert 4 <= kept < COUNT
    certify(tmp_path)  # one process continues with what two have left
    assert without_time(tmp_path / "certificates.tsv") == without_time(certify(tmp_path / "whole"))


# what does not fit


def refused(tmp_path: Path, message: str, **changes: object) -> None:
    with pytest.raises(UserError, match=message) as caught:
        certify(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.tsv"))


def test_another_sigma_is_refused_unless_permitted(tmp_path: Path) -> None:
    refused(tmp_path, r"differ in sigma \(0\.5 and 0\.25\): set sigma to 0\.5", sigma=0.25)
    out = certify(tmp_path, sigma=0.25, allow_sigma_mismatch=True)
    (warning,) = json.loads(out.with_suffix(".json").read_text())["warnings"]
    assert "sigma 0.5" in warning


def test_draws_that_cannot_certify_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, r"n=5 is too small for alpha=0\.01.*at least 7", n=5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classes", ("zero", "two", "one"), r"differ in class 1 \('two' and 'one'\)"),
        ("size", 8, r"differ in image size \(8 and 4\)"),
        ("channels", 3, r"differ in channels \(3 and 1\)"),
    ],
)
def test_a_model_of_other_data_is_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    wrong = replace(INFO, spec=replace(INFO.spec, **{field: value}))
    with pytest.raises(UserError, match=message):
        certify_store(
            ToyModel(), wrong, "m", store(), OPTIONS, tmp_path / "c.tsv", tmp_path / "kept", sigma=SIGMA
        )


def test_unlabeled_images_are_refused(tmp_path: Path) -> None:
    data = store()
    data.labels[5] = -1
    with pytest.raises(UserError, match="1 unlabeled images"):
        certify(tmp_path, data=data)
    certify(tmp_path, data=data, stride=2)  # the unlabeled one is left out
