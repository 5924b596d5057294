"""A project as an older version made it, and how this version says the same.

That version kept choices in conf/dataset.yaml, conf/pinned.yaml, edits of conf/ and a patched params.yaml.
Its stages existed for roles that were not pinned, too, and training's seconds stood among its results.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from crt.errors import UserError
from crt.project.choice import Choice
from crt.project.conf import Conf
from crt.project.repository import Project

CODE = ("crt/", "stages/")  # where the dependencies that are code lie

KEYS = {
    "baseline",
    "bank",
    "certify",
    "data",
    "epochs",
    "gate",
    "networks",
    "student",
    "teacher",
}  # of its params.yaml

STAYS = ("preset", "teacher", "student")  # what it had is chosen by name, whatever the default is or will be

# Parameters that it did not have, and what they must be for a stage to do what it did (...: anything).
NEW = {
    "data.validation": 0.0,  # nothing is set aside
    "data.near_copies": "list",  # nothing is left out
    "teacher.entry": None,  # of the file, the weights are found
    "method.keep": 0.0,  # no release is held on to
    "student.args_for": ...,  # the stages do not read it
    "teacher.trained": ...,  # these two only name stages
    "teacher.fetched": ...,
}
# Parameters that a stage had, and that do not matter: runtime.precision decides, and fetching trains nothing.
RECIPE = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "scheduler",
    "warmup_epochs",
    "clip_grad",
    "bfloat16_on_cpu",
)
RETIRED = {
    "teacher": ("teacher.bfloat16_on_cpu",),
    "student": ("student.bfloat16_on_cpu",),
    "fetch_teacher": ("data.augment.", "runtime.", *(f"teacher.{name}" for name in RECIPE)),
}

# The stage of the older version that made what a stage makes now; None: its own name. Certificates are of
# another kind now.
BEFORE = {
    "prepare_test": None,
    "prepare": None,
    "fetch": "{item}",
    "fetch_teacher": "teacher",
    "teacher": "teacher",
    "bank": None,
    "student": None,
}
FOLLOWS = {
    "certify": (
        "certificates are of another kind now, with exact noise: older ones cannot be compared with them"
    ),
    "metrics": "a stage of its own now",
    "gate": "it compares the certificates",
    "report": "it shows the results",
}


@dataclass(frozen=True)
class Older:
    """The last state of a project before this version was merged into it.

    Attributes:
        project: The repository.
        commit: The state's commit.
        merged: The commit of this version.
        params: The state's params.yaml.
        lock: The records of stages in its dvc.lock, by name.
        merged_lock: Those that came with this version.
    """

    project: Project
    commit: str
    merged: str
    params: dict[str, Any]
    lock: dict[str, Any]
    merged_lock: dict[str, Any]
    _hashes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls, project: Project) -> "Older | None":
        """The state before the merge (or in it) that brought conf/choice.yaml; None: there is no such merge.

        Raises:
            UserError: Its version is another one than 0.1.0.
        """
        ours, theirs = "HEAD", "MERGE_HEAD"
        if has(project, "HEAD", "conf/choice.yaml"):
            added = ("-1", "--first-parent", "-m", "--no-renames", "--diff-filter=A", "--format=%H")
            merge = project.git("log", *added, "--", "conf/choice.yaml").strip()
            ours, theirs = f"{merge}^1", f"{merge}^2"
        if not (has(project, ours, "conf/dataset.yaml") and has(project, theirs, "conf/choice.yaml")):
            return None
        commit, merged = project.git("rev-parse", ours, theirs).split()
        params = yaml.safe_load(project.git("show", f"{commit}:./params.yaml"))
        if not isinstance(params, dict) or not set(params) >= KEYS:
            raise UserError(
                f"params.yaml of {commit[:8]}, the state before the merge, is not that of version 0.1.0: "
                "merge the last commit of 0.1.0 and run its `dvc repro` first"
            )
        return cls(project, commit, merged, params, lock_at(project, commit), lock_at(project, merged))

    def read(self, name: str) -> str:
        """A file of it that git keeps."""
        return self.project.git("show", f"{self.commit}:./{name}")

    def results(self, name: str) -> dict[str, Any]:
        """A JSON file of its results/; empty: there is none."""
        try:
            found = json.loads(self.read(f"results/{name}"))
        except (UserError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    # Choices

    @property
    def pins(self) -> dict[str, str]:
        """The references that were pinned, by role."""
        pins = {"init": self.params["student"]["init"], "baseline": self.params["baseline"]["ref"]}
        return {role: ref for role, ref in pins.items() if ref is not None}

    def choice(self, conf: Conf) -> Choice:
        """What was chosen by name, as far as `conf` has such options; what lies in data/; what is pinned."""
        named = {  # a preset comes first: it chooses some of the others
            "preset": self._in_config("experiment@_global_"),
            "data": self._in_config("data"),
            "teacher": self.params["teacher"]["key"],
            "student": self.params["student"]["key"],
            "certify": self.params["certify"]["mode"],
            "bank": "logits" if self.params["bank"]["views"] else "none",
        }
        facts = {
            key: self.params["data"][key]
            for key in ("name", "num_classes", "channels", "image_size", "drops")
        }
        values: dict[str, Any] = {"data": facts}
        if self.pins:
            values["pinned"] = {role: {"ref": ref} for role, ref in self.pins.items()}
        if "init" in self.pins:
            values["start"] = {"init": "init"}
        if "baseline" in self.pins:
            values |= {"certified": {"baseline": {}}, "gate": {"against": "baseline"}}
        options: dict[str, str] = {}
        for group, name in named.items():
            there = name in conf.options(group)
            if there and (group in STAYS or name != conf.compose(Choice(options, values)).options[group]):
                options[group] = name
        return Choice(options, values)

    def wanted(self, composed: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters `composed`, with this state's own value of each that it had."""
        over = copy.deepcopy(self.params)
        over["data"]["validation"] = NEW["data.validation"]
        over["student"]["args_for"] = over["student"]["arch"]  # they fitted each other
        return _over(composed, over)

    def networks(self, student: str, option: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The networks of a student option of the project's own, by scale, as conf/network/<scale>/ has them.

        Args:
            student: The option's name.
            option: The content of its file.
        """
        found = {}
        for name in self.project.git("ls-tree", "--name-only", self.commit, "conf/networks/").split():
            row = yaml.safe_load(self.read(name)).get(student, option)
            if isinstance(row.get("arch"), str) and not row["arch"].startswith("${"):
                epochs = option.get("epochs")
                found[PurePosixPath(name).stem] = {
                    "arch": row["arch"],
                    "args_for": row["arch"],
                    "arch_args": row.get("arch_args") or {},
                    "epochs": epochs if isinstance(epochs, int) else self.params["epochs"]["convolutions"],
                }
        return found

    def _in_config(self, group: str) -> str | None:
        found = re.search(rf"(?m)^\s*- {re.escape(group)}:[ \t]*([\w-]+)", self.read("conf/config.yaml"))
        return found[1] if found else None

    # Stages

    def record_of(self, stage: str) -> dict[str, Any] | None:
        """The record of the stage that made what `stage` makes now; None: there was none."""
        kind, _, item = stage.partition("@")
        if kind not in BEFORE:
            return None
        found: dict[str, Any] | None = self.lock.get((BEFORE[kind] or stage).format(item=item))
        return found

    def objection(self, stage: str, params: Mapping[str, Any], data: Mapping[str, str | None]) -> str | None:
        """Why the outputs of `stage` cannot be taken over, in words; None: nothing but code has changed.

        Args:
            stage: Its name now.
            params: Its parameters now, nested or by dotted name.
            data: The MD5 of each of its dependencies that are not code, by path; None where there is none.
        """
        kind = stage.partition("@")[0]
        record = self.record_of(stage)
        if record is None:
            return FOLLOWS.get(kind, "it has not run before")
        before = _flat(record.get("params", {}).get("params.yaml", {}))
        return (
            self._edited(record)
            or _other_params(before, self._as_before(stage, _flat(params)), RETIRED.get(kind, ()))
            or self._other_data({dep["path"]: dep["md5"] for dep in record["deps"]}, data)
        )

    def _as_before(self, stage: str, params: dict[str, Any]) -> dict[str, Any]:
        """A stage's parameters under the names that they had."""
        role = stage.removeprefix("fetch@")
        if f"pinned.{role}.ref" in params:
            return {"baseline.ref" if role == "baseline" else "student.init": params[f"pinned.{role}.ref"]}
        if "start.init" in params:
            init = self.pins.get("init") if params.pop("start.init") == "init" else None
            return params | {"student.init": init}
        return params

    def _other_data(self, before: Mapping[str, str], now: Mapping[str, str | None]) -> str | None:
        for path, md5 in now.items():
            if md5 is None:
                return f"{path} is not there yet"
            if f"{path}/index.parquet" in before and self._same_images(path):
                continue
            if path not in before:
                return f"it depends on {path} now"
            if before[path] != md5 and not self._same_images(path):
                return f"{path} has changed since it ran"
        return None

    def _same_images(self, path: str) -> bool:
        """Whether a prepared drop, or each of them, has the same images and labels in the same order."""
        parts = PurePosixPath(path).parts
        if parts == ("prepared", "train"):
            return all(self._same_images(f"{path}/{drop}") for drop in self.params["data"]["drops"])
        if parts[0] != "prepared":
            return False
        meta = f"{path.removesuffix('/index.parquet')}/meta.json"
        try:
            before = self.project.read_at(self.commit, meta)
            now = (self.project.root / meta).read_text(encoding="utf-8")
        except (UserError, OSError):
            return False
        return bool(json.loads(before)["fingerprint"] == json.loads(now)["fingerprint"])

    def _edited(self, record: Mapping[str, Any]) -> str | None:
        """Which code of a stage had changed since it ran, in words: it was out of date before the merge."""
        for dep in record["deps"]:
            path = dep["path"]
            if path.startswith(CODE):
                if path not in self._hashes:
                    text = self.read(path) if has(self.project, self.commit, path) else ""
                    self._hashes[path] = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
                if self._hashes[path] != dep["md5"]:
                    return f"{path} had changed since it ran, before the merge"
        return None

    def seconds(self, stage: str) -> float | None:
        """How long it took to run, where that was recorded."""
        kind, _, item = stage.partition("@")
        if kind == "certify":
            found = self.results(f"certify/{item}.json")
            each, images = found.get("seconds_per_image"), found.get("images")
            return None if each is None or images is None else float(each * images)
        if kind in ("teacher", "student"):
            seconds: float | None = self.results(f"{kind}.json").get("train_seconds")
            return seconds
        return None


def has(project: Project, revision: str, name: str) -> bool:
    """Whether a commit has a file."""
    try:
        project.git("cat-file", "-e", f"{revision}:./{name}")
    except UserError:
        return False
    return True


def lock_at(project: Project, revision: str) -> dict[str, Any]:
    """The records of stages in a commit's dvc.lock, by name."""
    if not has(project, revision, "dvc.lock"):
        return {}
    found: dict[str, Any] = yaml.safe_load(project.git("show", f"{revision}:./dvc.lock"))["stages"]
    return found


FREE = ("arch_args", "margins")  # mappings whose keys are people's


def _over(composed: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in composed.items():
        if key not in older:
            found[key] = value
        elif isinstance(value, dict) and isinstance(older[key], dict) and key not in FREE:
            found[key] = _over(value, older[key])
        else:
            found[key] = older[key]
    return found


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


def _other_params(before: Mapping[str, Any], now: Mapping[str, Any], retired: tuple[str, ...]) -> str | None:
    for name, value in now.items():
        if name in before and before[name] != value:
            return f"{name} is {value}, and it ran with {before[name]}"
        if name not in before and NEW.get(name, value) != value and NEW[name] is not ...:
            return f"{name} is {value}, and there was no such parameter"
        if name not in before and name not in NEW:
            return f"{name} is {value}, and it ran without"
    gone = [name for name in before if name not in now and not name.startswith(retired)]
    return f"it ran with {gone[0]} {before[gone[0]]}, which there is not any more" if gone else None
