"""Several processes train as one would at the same global batch."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_toy import batches

from crt.errors import UserError

pytestmark = pytest.mark.slow


def train(folder: Path, processes: int, **changes: object) -> tuple[list[dict[str, str]], dict, str]:
    """The log, the weights and standard error of training_toy.py in so many processes."""
    folder.mkdir(exist_ok=True)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [
            sys.executable,
            *(launch if processes > 1 else []),
            str(Path(__file__).parent / "training_toy.py"),
            str(folder),
            json.dumps(changes),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with (folder / "log.tsv").open(encoding="utf-8") as file:
        return (
            list(csv.DictReader(file, delimiter="\t")),
            load_file(folder / "weights.safetensors"),
            done.stderr,
        )


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    """With noise too weak to matter, no BatchNorm and no dropout, only rounding differs.

    By a method of several passes.
    """
    one, weights, _ = train(tmp_path / "one", 1, method="smoothadv", epochs=6)
    two, same, said = train(tmp_path / "two", 2, method="smoothadv", epochs=6)
    assert float(one[-1]["loss"]) < 0.95 * float(one[0]["loss"])
    for column in ("epoch", "lr", "loss"):
        np.testing.assert_allclose(
            [float(row[column]) for row in two], [float(row[column]) for row in one], rtol=1e-4
        )
    for name, value in weights.items():
        torch.testing.assert_close(same[name], value, rtol=1e-3, atol=1e-5)
    assert said.count("epoch 6/6") <= 1, "one progress bar"


def test_each_process_has_noise_of_its_own_and_goes_on_after_a_kill(tmp_path):
    """Process 1 is killed in epoch 4; the same command ends with the bytes of a run without a kill."""
    _, through, _ = train(tmp_path / "through", 2, epochs=6)
    drawn = [(tmp_path / "through" / f"noise-{rank}").read_text() for rank in range(2)]
    assert drawn[0] != drawn[1]
    with pytest.raises(AssertionError, match="SIGKILL"):
        train(tmp_path / "killed", 2, epochs=6, die_in_epoch=4)
    assert (tmp_path / "killed" / "work" / "state.pt").is_file()
    _, resumed, _ = train(tmp_path / "killed", 2, epochs=6)
    assert all(torch.equal(resumed[name], value) for name, value in through.items())


def test_the_parts_of_all_processes_are_the_batches_of_one():
    whole = list(batches(8).epoch(2))
    parts = [list(batches(8, rank=rank, world_size=2).epoch(2)) for rank in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1])
    for batch, *halves in zip(whole, *parts, strict=True):
        for what in ("images", "labels", "rows"):
            assert torch.equal(torch.cat([getattr(half, what) for half in halves]), getattr(batch, what))


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match=r"3 processes cannot share batches of 8 images.*multiple"):
        batches(8, rank=0, world_size=3)
    with pytest.raises(UserError, match=r"at least 32 \(2 for each process\) are needed"):
        batches(16, rank=0, world_size=16)
