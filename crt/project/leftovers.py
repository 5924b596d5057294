"""Files of stages that no longer exist: of a drop that was removed, of a release that is not pinned.

DVC leaves them, and their records in dvc.lock, when a stage goes away. They would count as part of the
folders that other stages depend on.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from crt.files import write_text
from crt.project.choice import get

ROLES = ("init", "baseline")  # that are there only while something is pinned


def remove_leftovers(root: Path, params: dict[str, Any]) -> None:
    """Remove what belongs to no stage under these parameters, with its records."""
    drops = get(params, ("data", "drops"), [])
    gone = [
        path
        for pattern in ("prepared/train/*/", "banks/*/", "results/prepare/*.json")
        for path in root.glob(pattern)
        if path.stem not in (*drops, "test")
    ]
    for role in ROLES:
        if role not in get(params, ("pinned",), {}):
            gone.append(root / "models" / role)
        if role not in get(params, ("certified",), {}):
            gone += [*root.glob(f"certificates/{role}.*"), *root.glob(f"results/certify/**/{role}.*")]
    _remove_records(root, params, gone)
    for path in gone:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _remove_records(root: Path, params: dict[str, Any], gone: list[Path]) -> None:
    """Take stages that no longer exist out of dvc.lock, and add to `gone` what only they write."""
    lock = root / "dvc.lock"
    if not lock.exists():
        return
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    record = parse_yaml_for_update(lock.read_text(encoding="utf-8"), str(lock))
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8")).get("stages", {})
    present = {name for name, _, _ in _stages(stages, params)}
    # A stage that was renamed is no matter of parameters.
    left = [
        name
        for name in record.get("stages", {})
        if name not in present and "foreach" in stages.get(name.partition("@")[0], {})
    ]
    if not left:
        return
    claimed = {out for _, stage, item in _stages(stages, params) for out in _outs(stage, params, item)}
    for name in left:
        outs = {out["path"] for out in record["stages"].pop(name).get("outs", [])}
        gone += [root / out for out in sorted(outs - claimed)]
    write_text(lock, dumps_yaml(record))


def _stages(stages: dict[str, Any], params: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, definition and item of each stage; those without items have the item ''."""
    for name, stage in stages.items():
        if "foreach" not in stage:
            yield name, stage, ""
            continue
        items = stage["foreach"]
        if isinstance(items, str):
            items = get(params, tuple(items.strip("${} ").split(".")), [])
        for item in items:
            yield f"{name}@{item}", stage["do"], str(item)


def _outs(stage: dict[str, Any], params: dict[str, Any], item: str) -> Iterator[str]:
    for kind in ("outs", "metrics", "plots"):
        for out in stage.get(kind, []):
            path = out if isinstance(out, str) else next(iter(out))
            yield re.sub(
                r"\$\{([^}]+)\}",
                lambda found: (
                    item if found[1] in ("item", "key") else str(get(params, tuple(found[1].split("."))))
                ),
                path,
            )
