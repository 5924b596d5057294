"""Stages prepare@<drop> and prepare_test: raw images to arrays.

Called as `prepare.py train/<drop>` and `prepare.py test`.
"""

import json
import sys
from pathlib import Path

from common import run

from crt.config import Config
from crt.drops.layout import check_data_dir, read_classes
from crt.drops.prepare import Checks, prepare_drop, prepared_images
from crt.files import write_text
from crt.spec import ImageSpec

DATA, PREPARED, RESULTS = Path("data"), Path("prepared"), Path("results/prepare")


def main(config: Config) -> None:
    part = sys.argv[1]
    is_test = part == "test"
    name = part.removeprefix("train/")
    data = config.data
    if not is_test:
        check_data_dir(DATA, [name])
    classes = tuple(read_classes(DATA, data.num_classes))
    summary = prepare_drop(
        DATA / part,
        PREPARED / part,
        spec=ImageSpec(classes, data.image_size, data.channels, data.resize),
        checks=Checks(
            validation=0.0 if is_test else data.validation,
            skip_unreadable=data.skip_unreadable,
            tested=None if is_test else prepared_images(PREPARED / "test"),
            near_copies=data.near_copies,
            need_labels=is_test,
        ),
        workers=config.runtime.workers,
    )
    write_text(RESULTS / f"{name}.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(main)
