"""Stages bank@<drop>: the teacher's logits for some views of each image of a drop."""

import sys
from pathlib import Path

from common import run, work_dir

from crt.bank import write_bank
from crt.config import Config
from crt.data.store import open_store
from crt.devices import choose_device
from crt.models.checkpoint import model_fingerprint
from crt.training.fit import load_teacher


def main(config: Config) -> None:
    drop = sys.argv[1]
    store, teacher = open_store(Path("prepared/train") / drop), Path("models/teacher")
    fingerprint, device = model_fingerprint(teacher), choose_device(config.runtime.device)
    work = work_dir(
        "bank", config.bank.views, config.data.augment.model_dump(), config.sigma, config.seed, device.type,
        store.fingerprint, fingerprint,
    )  # fmt: skip
    model = load_teacher(teacher, store, config.sigma, device)
    write_bank(model, fingerprint, store, config, device, Path("banks") / drop, work)


if __name__ == "__main__":
    run(main)
