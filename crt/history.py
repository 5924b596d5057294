"""A release's history: what it is, and all releases before it, back to the first that has one.

The gate writes it for each student, as results/gate/history.json, and so the commit of a release holds it.
Version and date are those of the release's tag: they are filled in where a pinned release is fetched.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crt.errors import DamagedFileError, MissingFileError

NAME = "history.json"
MOST_BYTES = 2**24  # 10,000 releases of 1,600 bytes

Text = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]+$")]
Names = Annotated[list[Text], Field(max_length=10_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Radius = Annotated[str, Field(pattern=r"^\d{1,9}(\.\d{1,20})?(e-?\d{1,3})?$")]
Length = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """A part of the file: nothing unknown, nothing of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Change(_Part):
    """A student's values minus another's, on the same images."""

    acr: Annotated[float, Field(allow_inf_nan=False)]  # [0,1] pixel units
    certified_accuracy: Annotated[
        dict[Radius, Annotated[float, Field(ge=-1, le=1)]], Field(max_length=1000)
    ]  # by radius


class Entry(_Part):
    """One release, or the student that may become one.

    What is not known is None: all but the results of a release that was made before releases had a history.

    Attributes:
        version: `v1.2.0`, or the reference of a model that is no release of this repository; None: not
            released yet.
        date: Of the tag, `2025-03-31`.
        drops: The deliveries of training data.
        arch: The network's name.
        sigma: Of the noise, [0,1] pixel units.
        acr: Average certified radius, [0,1] pixel units.
        certified_accuracy: By radius.
        model: The model's fingerprint.
        verdict: The gate's.
        baseline: The version that it was compared with.
        change: Against the baseline.
        anchor: The version of the anchor; None: the chain begins with this release.
        reason: Why that is the anchor; None: it is the first of the chain.
        since_anchor: Change against the anchor.
        begins: Why the chain begins with this release; None: it does not.
        candidates: How many students were judged against the same baseline up to this one.
    """

    version: Text | None
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None
    drops: Names | None
    arch: Text
    sigma: Length
    acr: Length
    certified_accuracy: Annotated[dict[Radius, Share], Field(max_length=1000)]
    model: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    verdict: Text | None
    baseline: Text | None
    change: Change | None
    anchor: Text | None
    reason: Text | None
    since_anchor: Change | None
    begins: Text | None
    candidates: Annotated[int, Field(ge=1, lt=2**31)] | None


class History(_Part):
    """Releases, the oldest first; the last one is the release that carries it."""

    format: Literal[1]
    releases: Annotated[list[Entry], Field(min_length=1, max_length=10_000)]


def parse_history(content: bytes) -> History:
    """Read and check the content of a history.json.

    Raises:
        ValueError: It is too large, or not of this form; says why.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has {len(content)} bytes, and {MOST_BYTES} are the most")
    try:
        return History.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(_first(error)) from None


def read_history(path: Path) -> History:
    """Read and check a history.json.

    Raises:
        MissingFileError: It is not there.
        DamagedFileError: It is too large, or not of this form.
    """
    try:
        return parse_history(path.read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing: make it first", path) from None
    except ValueError as error:
        raise DamagedFileError(f"{path} is no history of releases ({error}): make it again", path) from None


def released(history: History, version: str, date: str, facts: Mapping[str, Any]) -> History:
    """The history of a release, of which the last entry is now known by its version.

    Args:
        history: As the gate wrote it.
        version: The release's, such as v1.2.0.
        date: Of its tag, `2025-03-31`.
        facts: What the tag's message says, of which only `begins` and `candidates` are used.

    Raises:
        ValueError: The facts are not of the entry's types; says why.
    """
    known = {key: facts[key] for key in ("begins", "candidates") if facts.get(key) is not None}
    last = history.releases[-1].model_dump() | {"version": version, "date": date} | known
    try:
        return History(format=1, releases=[*history.releases[:-1], Entry.model_validate(last)])
    except ValidationError as error:
        raise ValueError(_first(error)) from None


def version_of(ref: str) -> str:
    """What a pinned model is called: `v1.2.0` for a release of this repository, else its reference."""
    name = ref.partition("#sha256=")[0]
    own = re.fullmatch(r"registry:student@([^:@/]+)", name)
    return own[1] if own else name[:300]


def _first(error: ValidationError) -> str:
    """The first of a file's faults, in one line."""
    found = error.errors()[0]
    where = ".".join(map(str, found["loc"]))[:100]
    return f"{where}: {found['msg']}"[:300] if where else found["msg"][:300]
