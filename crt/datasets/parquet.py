"""Parquet files that hold images, as Hugging Face's `datasets` writes them: unpacked to image files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crt.datasets.roles import role_of
from crt.drops.images import suffix_of
from crt.drops.layout import check_class_names, is_image, walk_files
from crt.errors import UserError, first_ten

_LABELS = ("label", "labels", "fine_label", "class", "target", "category")
_IMAGES = ("image", "img", "images")
_ROWS = 256  # read at a time


@dataclass(frozen=True)
class _Columns:
    """Which columns hold images and labels, and what numbers as labels mean."""

    image: str
    label: str | None
    names: Sequence[str]


def is_parquet(path: Path) -> bool:
    """Whether a file's name says that it is one."""
    return path.suffix.lower() == ".parquet"


def holds_parquet(folder: Path) -> bool:
    """Whether a folder holds parquet files and no image files."""
    files = walk_files(folder)
    return any(map(is_parquet, files)) and not any(is_image(path.name) for path in files)


def unpack_parquet(source: Path, folder: Path) -> None:
    """Write the images of a parquet file, or of a folder of them, to `<part>/<class>/`.

    Images without a label go to `<part>/`.

    The part is told by a file's name or the folders around it (train, validation, test), if it is one's name.

    Raises:
        UserError: A file is damaged, or holds no column of images.
    """
    import pyarrow as pa

    files = [path for path in walk_files(source) if is_parquet(path)] if source.is_dir() else [source]
    for place, file in enumerate(files):
        above = file.relative_to(source).parts[:-1]
        role = next((role for name in (file.stem, *reversed(above)) if (role := role_of(name))), None)
        part = folder / role if role else folder
        made: set[str | None] = set()
        try:
            for number, (content, label) in enumerate(_rows(file)):
                into = part / label if label else part
                if label not in made:
                    check_class_names([label] if label else [], str(file))
                    into.mkdir(parents=True, exist_ok=True)
                    made.add(label)
                (into / f"{place:04}-{number:07}{suffix_of(content)}").write_bytes(content)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file} is no readable parquet file ({error}): get it again") from None


def _rows(file: Path) -> Iterator[tuple[bytes, str | None]]:
    """The bytes of each image file, and its label."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    columns = _columns(file, table.schema_arrow)
    wanted = [columns.image, *([columns.label] if columns.label else [])]
    for batch in table.iter_batches(_ROWS, columns=wanted):
        for row in batch.to_pylist():
            image = row[columns.image]
            content = image.get("bytes") if isinstance(image, Mapping) else image
            if not isinstance(content, bytes):
                raise UserError(
                    f"{file} names image files that it does not hold: "
                    "give the folder of these files with a list of labels"
                )
            yield content, _label(row[columns.label], columns.names) if columns.label else None


def _columns(file: Path, schema: Any) -> _Columns:
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    images = [name for name, kind in zip(schema.names, schema.types, strict=True) if holds_images(kind)]
    images.sort(key=lambda name: name.casefold() not in _IMAGES)
    if not images:
        raise UserError(
            f"{file} has no column of images (its columns: {first_ten(schema.names)}): "
            "give a table with image files as bytes"
        )
    features = _features((schema.metadata or {}).get(b"huggingface", b"{}"))
    known = {name.casefold(): name for name in schema.names}
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = next((known[name] for name in _LABELS if name in known), classes[0] if classes else None)
    return _Columns(images[0], label, features.get(label or "", {}).get("names", []))


def _features(metadata: bytes) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata say of the columns; nothing where they are of another form."""
    try:
        found = json.loads(metadata)["info"]["features"].items()
        return {name: one for name, one in found if isinstance(one, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _label(value: Any, names: Sequence[str]) -> str | None:
    """A label as the name of a folder."""
    if value is None or value == -1 or value == "":
        return None
    named = names[value] if isinstance(value, int) and 0 <= value < len(names) else str(value)
    return named.replace("/", "-")
