"""Stage report: write the page and the model card from all results."""

from pathlib import Path

from common import run

from crt.config import Config
from crt.report.write import write_report


def main(config: Config) -> None:
    write_report(Path(), config.preset, config.data.drops, list(config.certified), Path("report"))


if __name__ == "__main__":
    run(main)
