"""Stages fetch@<role>: get a pinned release, the baseline or what the student's training starts from (init)."""

import sys
from pathlib import Path

from common import root, run, work_dir

from crt.config import Config
from crt.references.locate import copy_pinned


def main(config: Config) -> None:
    role = sys.argv[1]
    ref = config.pinned[role].ref  # type: ignore[index]
    copy_pinned(ref, root(), Path("models") / role, work_dir("fetch", ref))


if __name__ == "__main__":
    run(main)
