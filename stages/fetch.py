"""Stages fetch@<role>: get a pinned release, as baseline or as the start of the student's training (init)."""

import sys
from pathlib import Path

from common import resume_root, root, run

from crt.config import Config
from crt.references.locate import copy_pinned


def main(config: Config) -> None:
    role = sys.argv[1]
    ref = config.pinned[role].ref  # type: ignore[index]
    copy_pinned(ref, root(), Path("models") / role, resume_root() / f"fetch-{role}")


if __name__ == "__main__":
    run(main)
