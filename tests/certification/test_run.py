"""A whole test set: the file, kills, a full disk, other settings, several processes."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from certification_toy import COUNT, INFO, SETTINGS, ToyModel, certify, store, without_time
from torch import Tensor, nn

from crt.certification.run import certify_store
from crt.certification.smoothing import SmoothedClassifier
from crt.errors import UserError
from crt.evaluation.certificates import read_certificates
from crt.spec import to_unit

TOY = Path(__file__).with_name("certification_toy.py")


def test_the_file_says_what_the_classifier_says(tmp_path: Path) -> None:
    """Row by row against the library's three-line use; the reader of the evaluation accepts it."""
    table = read_certificates(certify(tmp_path))
    smoothed = SmoothedClassifier(ToyModel(), 0.5, n0=20, n=1_000, alpha=0.01, seed=3)
    data = store()
    images = torch.stack([to_unit(pixels) for pixels in data.images])
    expected = smoothed.certify(images, torch.from_numpy(data.labels))
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
    assert facts["forward_passes"] == sum(20 + n for n in table.n)
    assert facts["seconds"] == pytest.approx(table.seconds.sum(), abs=1e-4)
    assert facts["model_fingerprint"] == "m" * 64
    assert facts["data_fingerprint"] == "t" * 64
    assert facts["device"].startswith("cpu")
    assert facts["warnings"] == []
    assert not (tmp_path / "work").exists()


def test_adaptive_radii_are_those_asked_for(tmp_path: Path) -> None:
    table = read_certificates(certify(tmp_path, mode="adaptive", n=20_000))
    assert set(table.radius.tolist()) <= {0.0, 0.25, 0.5}
    assert len(set(table.n.tolist())) > 4
    exact = read_certificates(certify(tmp_path, n=20_000))
    assert table.settings["forward_passes"] < exact.settings["forward_passes"] / 3
    assert (exact.right_at(0.25) & ~table.right_at(0.25)).sum() <= 1


def test_stride_and_max_images(tmp_path: Path) -> None:
    whole = without_time(certify(tmp_path))
    assert without_time(certify(tmp_path, stride=3, max_images=5)) == [whole[0], *whole[1::3][:5]]
    assert without_time(certify(tmp_path, max_images=10_000)) == whole


def test_without_the_shortcut_every_image_is_estimated(tmp_path: Path) -> None:
    table = read_certificates(certify(tmp_path, skip_misclassified=False))
    assert set(table.n.tolist()) == {1_000}
    assert "misclassified" not in table.status


@pytest.mark.parametrize(
    "changes", [{"batch_size": 7}, {"batch_size": 512}, {"mode": "adaptive", "batch_size": 1}]
)
def test_batch_size_changes_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    mode = changes.get("mode", "exact")
    assert without_time(certify(tmp_path / "a", **changes)) == without_time(
        certify(tmp_path / "b", mode=mode)
    )


def test_another_seed_has_other_votes(tmp_path: Path) -> None:
    assert without_time(certify(tmp_path / "a")) != without_time(certify(tmp_path / "b", seed=4))


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
while kills < 15 or len({{count for count in kept if 0 < count < COUNT}}) < 3:  # on a busy machine some come too early
    out, before = folder / str(cycle), 0
    while True:
        pid = start(out)
        time.sleep(random.uniform(0.0, 0.7) * duration)
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            break
        kills += 1
        lines = "".join(path.read_text() for path in out.glob("work/*/rows-*.jsonl")).count("status")
        assert lines >= before or (out / "certificates.tsv").exists(), "a kill lost decided images"
        before = lines
        kept.append(lines)
    assert without_time(out / "certificates.tsv") == without_time(folder / "whole/certificates.tsv")
    cycle += 1
print(json.dumps([kills, kept]))
"""


@pytest.mark.parametrize("mode", ["exact", "adaptive"])
def test_killed_at_random_moments_ends_with_the_same_file(tmp_path: Path, mode: str) -> None:
    """A real SIGKILL each time, until a run gets through; again, until there were 15, at three different places."""
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


class Interrupted(nn.Module):
    """Fails after so many forward passes."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.model, self.left = ToyModel(), passes

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.model(x)


def rows(folder: Path) -> list[Path]:
    return list(folder.glob("work/*/rows-*.jsonl"))


def half_done(folder: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        certify(folder, Interrupted(300))
    (path,) = rows(folder)
    assert 5 < path.read_text().count("status") < COUNT - 5
    return path


def test_decided_images_are_not_repeated(tmp_path: Path) -> None:
    half_done(tmp_path)
    passes = Interrupted(10**6)
    certify(tmp_path, passes)
    assert 10**6 - passes.left < 600
    assert without_time(tmp_path / "certificates.tsv") == without_time(certify(tmp_path / "whole"))


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
)
def test_other_settings_never_resume(tmp_path: Path, changes: dict[str, object]) -> None:
    half_done(tmp_path)
    assert without_time(certify(tmp_path, **changes)) == without_time(certify(tmp_path / "whole", **changes))


def test_another_model_never_resumes(tmp_path: Path) -> None:
    half_done(tmp_path)
    other = ToyModel()
    torch.nn.init.zeros_(other.linear.weight)
    out = tmp_path / "certificates.tsv"
    certify_store(other, INFO, "o" * 64, store(), SETTINGS, out, tmp_path / "work")
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


def test_two_processes_write_the_same_file(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr
    assert without_time(tmp_path / "two/certificates.tsv") == without_time(certify(tmp_path / "one"))


def test_a_lost_process_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    done = torchrun(tmp_path, 2, victim=[1, 4])
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr or "another process of this run was lost" in done.stderr
    assert not (tmp_path / "certificates.tsv").exists()
    kept = sum(path.read_text().count('"status"') for path in rows(tmp_path))
    assert 4 <= kept < COUNT
    passes = Interrupted(10**6)
    certify(tmp_path, passes)  # one process goes on with what two have left
    assert without_time(tmp_path / "certificates.tsv") == without_time(certify(tmp_path / "whole"))


# what does not fit


def refused(tmp_path: Path, message: str, **changes: object) -> None:
    with pytest.raises(UserError, match=message) as caught:
        certify(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.tsv"))


def test_another_sigma_is_refused_unless_permitted(tmp_path: Path) -> None:
    refused(tmp_path, r"trained with sigma 0\.5 and is certified with 0\.25: set sigma to 0\.5", sigma=0.25)
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
    from dataclasses import replace

    with pytest.raises(UserError, match=message):
        certify_store(
            ToyModel(),
            replace(INFO, spec=replace(INFO.spec, **{field: value})),
            "m",
            store(),
            SETTINGS,
            tmp_path / "c.tsv",
            tmp_path / "work",
        )


def test_unlabelled_images_are_refused(tmp_path: Path) -> None:
    data = store()
    data.labels[5] = -1
    with pytest.raises(UserError, match="1 unlabelled images"):
        certify_store(ToyModel(), INFO, "m", data, SETTINGS, tmp_path / "c.tsv", tmp_path / "work")
