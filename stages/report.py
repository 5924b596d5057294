"""Stage report: write the page and the model card from all results."""

from pathlib import Path

from common import run

from crt.config import Config
from crt.data.store import open_split
from crt.report.write import write_report


def main(config: Config) -> None:
    images = open_split(Path(config.certify.images), config.certify.split) if config.report.images else None
    write_report(Path(), config.preset, config.data.drops, list(config.certified), Path("report"), images)


if __name__ == "__main__":
    run(main)
