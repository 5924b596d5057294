"""`crt pin`: choose the release that students are compared with and that their training starts from."""

import json
from pathlib import Path
from typing import Any

from crt.commands.dataset import changed_params, load_params
from crt.commands.releases import ARTIFACT, find_release, list_releases
from crt.errors import UserError
from crt.files import write_text
from crt.references.fetch import sha256_of
from crt.references.locate import locate, parse, weights_of

OWN = f"registry:{ARTIFACT}@"  # how references to this repository's releases begin

TEXT = """\
# @package _global_
# The release in use. Written by `crt pin`, and by `crt ingest` when there is a newer one.
baseline:
  ref: {ref}
student:
  init: {ref}
"""


def pin(what: str, root: Path = Path()) -> None:
    """Pin a version of this repository (`v1.0.0`), the newest (`latest`), any model reference, or `none`.

    Raises:
        UserError: there is no such release, or the reference has an unknown form. Nothing is changed then.
    """
    ref = None if what == "none" else _reference(what, root)
    write_pins(root, ref)
    print(f"{'nothing' if ref is None else ref} is pinned, as baseline and as start of training")
    print("next: `dvc repro`, then `git commit` conf/pinned.yaml and params.yaml with the results")


def _reference(what: str, root: Path) -> str:
    own, _, pinned = what.partition("#")
    if own.startswith(OWN) and not pinned:
        what = own.removeprefix(OWN)
    if ":" not in what:
        return find_release(root, what.removeprefix(f"{ARTIFACT}@")).ref
    ref = parse(what)
    if ref.form == "path":
        place = locate(ref, root, root)
        if ref.sha256 is None:
            raise UserError(
                f"{what} can change, and then the gate would compare with another model: "
                f"write it as {what}#sha256={sha256_of(weights_of(place))}"
            )
    return what


def pin_newest(root: Path) -> str | None:
    """Pin the newest release, where one of this repository's releases or none was pinned; what to tell, if anything."""
    params = load_params(root)
    current = params.baseline.ref
    if not (root / ".git").exists() or (current is not None and not current.startswith(OWN)):
        return None
    releases = list_releases(root)
    if not releases or (releases[0].ref == current == params.student.init):
        return None
    write_pins(root, releases[0].ref)
    return f"{releases[0].tag} is pinned, as baseline and as start of training (`crt pin` chooses another)"


def write_pins(root: Path, ref: str | None) -> None:
    """Write the pins to conf/pinned.yaml and params.yaml; no other parameter changes."""

    def change(raw: dict[str, Any]) -> None:
        raw["baseline"]["ref"] = ref
        raw["student"]["init"] = ref

    text, _ = changed_params(root, change)
    write_text(root / "conf" / "pinned.yaml", TEXT.format(ref=json.dumps(ref)))
    write_text(root / "params.yaml", text)
