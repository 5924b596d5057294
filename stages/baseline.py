"""Get the release that the student is compared with."""

from pathlib import Path

from common import root, run, work_dir

from crt.config import Config
from crt.models.locate import copy_pinned


def main(config: Config) -> None:
    copy_pinned(
        config.baseline.ref, root(), Path("models/baseline"), work_dir("baseline", config.baseline.ref)
    )


if __name__ == "__main__":
    run(main)
