"""Stages metrics@<role>: metrics and curves of a model, from its certificates alone."""

import sys
from pathlib import Path

from common import run

from crt.config import Config
from crt.evaluation.metrics import MetricFiles, write_metrics

RESULTS = Path("results/certify")


def main(config: Config) -> None:
    role = sys.argv[1]
    files = MetricFiles(
        metrics=RESULTS / f"{role}.json",
        details=RESULTS / "details" / f"{role}.json",
        curve=RESULTS / "curves" / f"{role}.csv",
        ecdf=RESULTS / "ecdf" / f"{role}.csv",
    )
    write_metrics(Path("certificates") / f"{role}.tsv", role, files)


if __name__ == "__main__":
    run(main)
