"""Transfer the teacher's robustness to the student."""

from pathlib import Path

from common import run_on_all_devices, work_dir

from crt.config import Config
from crt.data.store import open_store
from crt.models.checkpoint import model_fingerprint
from crt.training.fit import Files, fit


def main(config: Config) -> None:
    drops = [Path("prepared/train") / drop for drop in config.data.drops]
    teacher = Path("models/teacher")
    init = Path("models/init") if config.start.init == "init" else None
    banks = [Path("banks") / drop for drop in config.data.drops] if config.bank.views else None
    work = work_dir(
        "student",
        config.bank.model_dump(),
        config.student.model_dump(),
        config.method.model_dump(),
        config.data.augment.model_dump(),
        config.sigma,
        config.seed,
        config.runtime.model_dump(),
        [open_store(drop).fingerprint for drop in drops],
        model_fingerprint(teacher),
        None if init is None else model_fingerprint(init),
    )
    files = Files(
        Path("models/student"),
        Path("results/student/training.tsv"),
        Path("results/student.json"),
        Path("times/student.json"),
        work,
    )
    fit("student", config, config.student, config.method, drops, teacher, files, init, banks)


if __name__ == "__main__":
    run_on_all_devices(main)
