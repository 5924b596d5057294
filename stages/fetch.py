"""Stages fetch@<role>: get a pinned release, as baseline or as the start of the student's training (init)."""

import sys
from pathlib import Path

from common import resume_root, root, run

from crt.config import Anchored, Config
from crt.references.pinned import copy_baseline, copy_pinned


def main(config: Config) -> None:
    role = sys.argv[1]
    pin = config.pinned[role]  # type: ignore[index]
    folder, work = Path("models") / role, resume_root() / f"fetch-{role}"
    if role == "init":
        copy_pinned(pin.ref, root(), folder, work)
    else:
        anchor = pin.anchor.ref if isinstance(pin, Anchored) else None
        copy_baseline(pin.ref, anchor, root(), folder, work)


if __name__ == "__main__":
    run(main)
