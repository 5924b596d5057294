"""A toy test set and model. As a script: certify it, as the tests' subprocesses do."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from model_folders import describe
from torch import Tensor, nn

from crt.certification import journal, run
from crt.certification.run import certify_store
from crt.config import Certify
from crt.data.store import Store
from crt.processes import rank
from crt.spec import ImageSpec, to_unit

COUNT, SIZE = 40, 4

SIGMA = 0.5
OPTIONS = Certify(
    mode="exact",
    n0=20,
    n=1_000,
    alpha=0.01,
    radii=[0.0, 0.25, 0.5],
    stride=1,
    max_images=None,
    skip_misclassified=True,
    allow_sigma_mismatch=False,
    precision="float32",
    batch_size=64,
    split="test",
    images="prepared/test",
)

SPEC = ImageSpec(("zero", "one", "two"), SIZE, channels=1)
INFO = describe(SPEC, arch="toy", sigma=SIGMA)


class ToyModel(nn.Module):
    """Linear, with three classes, some of which win clearly and some hardly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(SIZE * SIZE, len(SPEC.classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1) - 0.5)


class ToyStore(Store):
    """Without a parquet file."""

    @property
    def names(self) -> list[str]:  # type: ignore[override]
        return [f"test/{place:02d}\tä.png" for place in range(len(self))]


def store() -> ToyStore:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, SIZE, SIZE, 1), dtype=np.uint8)
    with torch.no_grad():
        labels = ToyModel()(to_unit(pixels)).argmax(1).numpy()
    labels[::7] = (labels[::7] + 1) % 3  # some are misclassified
    return ToyStore(Path("prepared/test"), pixels, labels, SPEC, "t" * 64, np.zeros(len(labels), bool))


def certify(
    folder: Path,
    model: nn.Module | None = None,
    data: Store | None = None,
    fingerprint: str = "m" * 64,
    sigma: float = SIGMA,
    seed: int | None = None,
    **changes: object,
) -> Path:
    """Certify into folder/certificates.tsv, with decided images in folder/kept."""
    out, options = folder / "certificates.tsv", OPTIONS.model_copy(update=changes)
    model, data = model or ToyModel(), store() if data is None else data
    certify_store(
        model, INFO, fingerprint, data, options, out, folder / "kept", sigma=sigma, seed=seed, device="cpu"
    )
    return out


def without_time(path: Path) -> list[list[str]]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [row[:5] + row[6:] for row in rows]


def die_after(rows: int) -> None:
    """Make this process kill itself once it has written so many rows."""
    append = journal.Journal.append

    def fatal(self, new):
        for count, row in enumerate(append(self, new), start=1):
            yield row
            if count == rows:
                os.kill(os.getpid(), signal.SIGKILL)

    journal.Journal.append = fatal  # type: ignore[method-assign]


if __name__ == "__main__":
    changes = json.loads(sys.argv[2])
    victim, rows = changes.pop("victim", [-1, 0])
    if rank() == victim:
        die_after(rows)
    torch.set_num_threads(1)
    certify(Path(sys.argv[1]), **changes)
    assert run  # the module under test
