"""Train the robust network that is transferred from."""

from pathlib import Path

from common import run, work_dir

from crt.config import Config
from crt.data.store import open_store
from crt.training.fit import Files, fit


def main(config: Config) -> None:
    drop = Path("prepared/train") / config.teacher.drop
    work = work_dir(
        "teacher",
        config.teacher.model_dump(),
        config.data.augment.model_dump(),
        config.sigma,
        config.seed,
        config.runtime.model_dump(),
        open_store(drop).fingerprint,
    )
    files = Files(
        Path("models/teacher"), Path("results/teacher/training.tsv"), Path("results/teacher.json"), work
    )
    fit("teacher", config, config.teacher, config.teacher.method, [drop], None, files)


if __name__ == "__main__":
    run(main)
