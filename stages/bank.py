"""Stages bank@<drop>: the teacher's logits for some views of each image, or the note that there is no bank."""

import json
import sys
from pathlib import Path

from common import run, work_dir

from crt.config import Config
from crt.files import replacing, write_text


def main(config: Config) -> None:
    drop = sys.argv[1]
    folder = Path("banks") / drop
    if config.bank.views:
        write(config, drop, folder)
        return
    with replacing(folder) as aside:
        write_text(aside / "bank.json", json.dumps({"views": 0}) + "\n")


def write(config: Config, drop: str, folder: Path) -> None:
    from crt.bank import write_bank
    from crt.data.store import open_store
    from crt.devices import choose_device
    from crt.models.checkpoint import model_fingerprint
    from crt.training.fit import load_teacher

    store, teacher = open_store(Path("prepared/train") / drop), Path("models/teacher")
    fingerprint, device = model_fingerprint(teacher), choose_device(config.runtime.device)
    work = work_dir(
        "bank", config.bank.model_dump(), config.data.augment.model_dump(), config.sigma, config.seed, device.type,
        store.fingerprint, fingerprint,
    )  # fmt: skip
    write_bank(
        load_teacher(teacher, store, config.sigma, device), fingerprint, store, config, device, folder, work
    )


if __name__ == "__main__":
    run(main)
