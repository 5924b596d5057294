import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from crt.errors import UserError
from crt.training.resume import load_state, save_state

RUN = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {here!r})
from training_toy import network, run
model = network()
run(Path({work!r}), model, epochs=40)
torch.save(model.state_dict(), {out!r})
"""


def start(folder: Path) -> subprocess.Popen:
    code = RUN.format(
        here=str(Path(__file__).parent), work=str(folder / "work"), out=str(folder / "weights.pt")
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def epochs_logged(folder: Path) -> int:
    log = folder / "log.tsv"
    return len(log.read_text().splitlines()) - 1 if log.exists() else 0


@pytest.mark.slow
def test_killed_at_random_moments_training_ends_with_the_same_bytes(tmp_path):
    """SIGKILL several times, each at a random moment after some more epochs."""
    (tmp_path / "through").mkdir()
    assert start(tmp_path / "through").wait() == 0
    killed = tmp_path / "killed"
    killed.mkdir()
    rng = random.Random(os.environ.get("CRT_KILL_SEED", "0"))
    kills = 0
    for _ in range(3):
        process = start(killed)
        goal = epochs_logged(killed) + rng.randint(1, 9)
        while epochs_logged(killed) < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    assert 0 < epochs_logged(killed) < 40
    assert start(killed).wait() == 0
    assert (killed / "weights.pt").read_bytes() == (tmp_path / "through" / "weights.pt").read_bytes()
    assert (killed / "log.tsv").read_bytes() == (tmp_path / "through" / "log.tsv").read_bytes()


def test_a_state_comes_back(tmp_path):
    state = {
        "model": {"w": torch.rand(3)},
        "optimizer": {},
        "rows": [{"epoch": 1, "loss": 0.5}],
        "seconds": 1.5,
    }
    assert load_state(tmp_path / "work", torch.device("cpu")) is None
    save_state(tmp_path / "work", state)
    loaded = load_state(tmp_path / "work", torch.device("cpu"))
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["rows"] == state["rows"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["state.pt"]


def test_a_full_disk_ends_in_a_sentence_and_leaves_the_state_before(tmp_path, monkeypatch):
    before = {"model": {}, "optimizer": {}, "rows": [], "seconds": 1.0}
    save_state(tmp_path, before)

    def full(state, file):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"No space left.*free disk space.*intact"):
        save_state(tmp_path, {"seconds": 2.0})
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert load_state(tmp_path, torch.device("cpu")) == before


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "other"])
def test_a_damaged_state_is_none_and_said(tmp_path, capsys, damage):
    save_state(tmp_path, {"model": {"w": torch.rand(99)}, "optimizer": {}, "rows": [], "seconds": 1.0})
    file = tmp_path / "state.pt"
    if damage == "other":
        torch.save([1, 2], file)
    else:
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "noise": os.urandom(500)}[damage])
    assert load_state(tmp_path, torch.device("cpu")) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the checkpoint {file} is damaged" in line
    assert line.endswith("training starts from the beginning")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_state_that_cannot_be_read_is_not_given_up(tmp_path, monkeypatch, error):
    save_state(tmp_path, {"model": {}, "optimizer": {}, "rows": [], "seconds": 1.0})

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(type(error)):
        load_state(tmp_path, torch.device("cpu"))


def test_nothing_but_tensors_and_plain_values_is_unpickled(tmp_path, capsys):
    class Sly:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"model": Sly()}, tmp_path / "state.pt")
    assert load_state(tmp_path, torch.device("cpu")) is None
    assert "is damaged (UnpicklingError" in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()
