"""Get a pinned release: the baseline that the student is compared with, or what its training starts from (init)."""

import sys
from pathlib import Path

from common import root, run, work_dir

from crt.config import Config
from crt.references.locate import copy_pinned


def main(config: Config) -> None:
    role = sys.argv[1]
    ref = {"baseline": config.baseline.ref, "init": config.student.init}[role]
    copy_pinned(ref, root(), Path("models") / role, work_dir(role, ref))


if __name__ == "__main__":
    run(main)
