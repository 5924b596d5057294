"""Stage teacher@<drop>: train the robust network that is transferred from."""

from pathlib import Path

from common import resume_root, run_on_all_devices

from crt.config import Config
from crt.training.fit import Files, fit, teacher_job


def main(config: Config) -> None:
    fit(teacher_job(config, Path("prepared/train") / config.teacher.drop), Files.of("teacher", resume_root()))


if __name__ == "__main__":
    run_on_all_devices(main)
