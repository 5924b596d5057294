"""Transfer the teacher's robustness to the student."""

from pathlib import Path

from common import resume_root, run_on_all_devices

from crt.config import Config
from crt.training.fit import Files, fit, student_job


def main(config: Config) -> None:
    job = student_job(
        config,
        [Path("prepared/train") / drop for drop in config.data.drops],
        teacher=Path("models/teacher"),
        init=Path("models/init") if config.start.init == "init" else None,
        banks=[Path("banks") / drop for drop in config.data.drops] if config.bank.views else None,
    )
    fit(job, Files.of("student", resume_root()))


if __name__ == "__main__":
    run_on_all_devices(main)
