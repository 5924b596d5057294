"""Stage teacher@<drop>: train the robust network that is transferred from."""

from pathlib import Path

from common import run_on_all_devices, work_dir

from crt.config import Config, Teacher
from crt.data.store import open_store
from crt.training.fit import Files, fit


def main(config: Config) -> None:
    teacher = config.teacher
    assert isinstance(teacher, Teacher), "the stage exists for trained teachers only"
    drop = Path("prepared/train") / teacher.drop
    work = work_dir(
        "teacher",
        teacher.model_dump(),
        config.data.augment.model_dump(),
        config.sigma,
        config.seed,
        config.runtime.model_dump(),
        open_store(drop).fingerprint,
    )
    files = Files(
        Path("models/teacher"),
        Path("results/teacher/training.tsv"),
        Path("results/teacher.json"),
        Path("times/teacher.json"),
        work,
    )
    fit("teacher", config, teacher, teacher.method, [drop], None, files)


if __name__ == "__main__":
    run_on_all_devices(main)
