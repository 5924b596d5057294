"""Stages bank@<drop>: the teacher's logits for some views of each image of a drop."""

import sys
from pathlib import Path

from common import resume_root, run

from crt.bank import record
from crt.config import Config


def main(config: Config) -> None:
    drop = sys.argv[1]
    record(config, Path("prepared/train") / drop, Path("models/teacher"), Path("banks") / drop, resume_root())


if __name__ == "__main__":
    run(main)
