"""What version 0.1.0 wrote, in the form that this version's stages write it, to the byte."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crt.files import replacing_file, write_text
from crt.project.older import Older

TIMES = {"train_seconds": "seconds", "images_per_second": "images_per_second"}  # results/ -> times/


def convert(older: Older, stage: str, out: str, *, cached: bool) -> None:
    """Bring an output of a stage that is taken over to its present form, or write it where it is new.

    Args:
        older: The state before the merge.
        stage: The stage's name.
        out: The output's path.
        cached: Whether DVC keeps it, and not git. Models and banks are what they were.
    """
    path = older.project.root / out
    folder, _, rest = out.partition("/")
    facts = older.results(rest)
    if folder == "prepared":
        resize = older.lock[stage]["params"]["params.yaml"]["data.resize"]
        _convert_prepared(path, resize)
    elif folder == "times":
        times = {new: facts[old] for old, new in TIMES.items()}
        write_text(path, _json({**times, "device": "unknown"}))
    elif cached:
        return
    elif rest.startswith("prepare/"):
        write_text(path, _json(_summary(facts)))
    elif path.suffix == ".json":
        write_text(path, _json({key: value for key, value in facts.items() if key not in TIMES}))
    else:
        write_text(path, _without_columns(older.read(out), list(TIMES)))


def _convert_prepared(folder: Path, resize: str) -> None:
    """Format 1 of a prepared drop to format 2: how images were resized, and that none is for validation."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    index = pq.ParquetFile(folder / "index.parquet")
    added = pa.field("validation", pa.bool_())
    with (
        replacing_file(folder / "index.parquet") as aside,
        pq.ParquetWriter(aside, index.schema_arrow.append(added)) as writer,
    ):
        for number in range(index.num_row_groups):
            rows = index.read_row_group(number)
            writer.write_table(rows.append_column(added, pa.array(np.zeros(len(rows), bool))))
    shards = meta.pop("shards", 1)
    write_text(folder / "meta.json", _json({**meta, "format": 2, "resize": resize, "shards": shards}))


def _summary(facts: dict[str, Any]) -> dict[str, Any]:
    """The summary of a prepared drop: no image is set aside; what was not looked at is empty or unknown."""
    nothing = {"images": 0, "classes": dict.fromkeys(facts["classes"], 0), "whole_classes": []}
    found = {}
    for key, value in facts.items():
        found[key] = value
        if key == "classes":
            found |= {"validation": nothing, "changes": {}}
        elif key == "duplicates":
            found["near_copies"] = None
    ignored = facts["ignored_files"]
    return found | {"ignored": {"unknown": ignored} if ignored else {}, "ignored_names": []}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _without_columns(text: str, left_out: Iterable[str]) -> str:
    import pandas as pd

    table = pd.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    kept: str = table.drop(columns=left_out, errors="ignore").to_csv(
        sep="\t", index=False, lineterminator="\n"
    )
    return kept
