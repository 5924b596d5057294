"""What follows `git merge` of this version into a project that an older one made.

Choices move to conf/choice.yaml. Outputs whose stage was only renamed, or of which nothing but the code
changed, are taken over: a teacher is not trained again because its stage has another name. No stage runs.
Each step can be repeated, so after a kill the same command ends what was begun.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from crt.errors import UserError
from crt.files import write_text
from crt.project.choice import Choice
from crt.project.conf import CHOICE, Conf
from crt.project.older import CODE, Older, has
from crt.project.older_outputs import convert
from crt.project.repository import Project
from crt.project.takeover import choice_for

MARK = Path(".work/upgraded")  # the older state's commit, once its choices are moved


@dataclass
class Upgraded:
    """What was done, and what is left to do.

    Attributes:
        choice: What was moved to conf/choice.yaml; None: it was there already.
        theirs: Option files that both sides had changed; this version's were taken.
        taken: Stages whose outputs were taken over.
        again: Stages that must run: name, reason, and the seconds that it took before, where they are known.
        removed: Files that belong to no stage any more, or to one that must run.
    """

    choice: Choice | None = None
    theirs: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    again: list[tuple[str, str, float | None]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.choice is not None or bool(self.taken or self.removed)


def upgrade(project: Project, older: Older) -> Upgraded:
    """Make the project, as `git merge` left it, one of this version.

    Raises:
        UserError: Files are in conflict that people have to look at, or a file that has to be there is
            missing.
    """
    done = Upgraded()
    conflicts = unmerged(project)
    if foreign := [name for name in conflicts if not _is_ours(name)]:
        raise UserError(
            f"git could not merge {', '.join(foreign[:10])}: resolve that and `git add` it, then run again "
            "(what is in conf/, results/, params.yaml and dvc.lock is resolved by this command)"
        )
    if _is_pending(project, older, conflicts):
        done.theirs = _settle_files(project, older, conflicts)
        _adapt_own_options(project, older)
        _forget_records(project, older)
        done.choice = _choice(project, older)
        project.choose(done.choice)
        write_text(project.root / MARK, older.commit + "\n")
    _take_over(project, older, done)
    if is_merging(project):
        project.git("add", "-A", "--", "conf", "results", "params.yaml", "dvc.lock", *conflicts)
    return done


def is_merging(project: Project) -> bool:
    """Whether a merge is in progress."""
    return has(project, "MERGE_HEAD", "dvc.yaml")


def unmerged(project: Project) -> list[str]:
    """The files that git could not merge."""
    found = project.git("diff", "--name-only", "--diff-filter=U", "--relative", "-z")
    return [name for name in found.split("\0") if name]


def _is_ours(name: str) -> bool:
    """Whether this command resolves a conflict in that file."""
    return (
        name in ("params.yaml", "dvc.lock")
        or name.startswith(("conf/", "results/"))
        or Path(name).name == ".gitignore"
    )


def _is_pending(project: Project, older: Older, conflicts: list[str]) -> bool:
    """Whether the older state's choices are still to be moved, in this merge or after it."""
    came = project.git("show", f"{older.merged}:./conf/{CHOICE}")
    if conflicts or (project.conf.folder / CHOICE).read_text(encoding="utf-8") == came:
        return True
    mark = project.root / MARK  # another clone has none, and records of its own
    moved = mark.exists() and mark.read_text(encoding="utf-8").strip() == older.commit
    return not moved and not _own_records(older, _records(project))


def _records(project: Project) -> dict[str, Any]:
    """The records of stages in dvc.lock, by name; none where git left its conflict markers."""
    lock = project.root / "dvc.lock"
    if not lock.exists():
        return {}
    try:
        found: dict[str, Any] = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
    except yaml.YAMLError:
        return {}
    return found


def _settle_files(project: Project, older: Older, conflicts: list[str]) -> list[str]:
    """Take this version's files in conflicts, config.yaml and choice.yaml; remove what it no longer has.

    Returns:
        The option files among the conflicts.
    """
    common = project.git("merge-base", older.commit, older.merged).strip()
    deleted = ("--name-only", "--no-renames", "--diff-filter=D", "--relative")
    gone = project.git("diff", *deleted, common, older.merged, "--", "conf").splitlines()
    names = [name for name in conflicts if name.startswith("conf/") or Path(name).name == ".gitignore"]
    taken = []
    for name in dict.fromkeys([*names, "conf/config.yaml", f"conf/{CHOICE}", *gone]):
        path = project.root / name
        if has(project, older.merged, name):
            write_text(path, project.git("show", f"{older.merged}:./{name}"))
            if name in names and name.count("/") == 2:
                taken.append(name)
        else:
            path.unlink(missing_ok=True)
    return taken


def _adapt_own_options(project: Project, older: Older) -> None:
    """Let the options that people added for students and teachers say what they did."""
    retired = re.compile(r"(?m)^(bfloat16_on_cpu:.*|\w+: \$\{(networks|epochs)\..*)\n")
    for path in [*project.conf.folder.glob("student/*.yaml"), *project.conf.folder.glob("teacher/*.yaml")]:
        name = path.relative_to(project.root).as_posix()
        if has(project, older.merged, name) or not has(project, older.commit, name):
            continue
        text = older.read(name)
        if path.parent.name == "student":
            for scale, network in older.networks(path.stem, yaml.safe_load(text)).items():
                write_text(
                    project.conf.folder / "network" / scale / path.name,
                    yaml.safe_dump(network, sort_keys=False),
                )
        write_text(path, retired.sub("", text))


def _own_records(older: Older, records: dict[str, Any]) -> dict[str, Any]:
    """Those records of stages that are neither the older state's nor came with this version."""
    return {
        name: record
        for name, record in records.items()
        if record not in (older.lock.get(name), older.merged_lock.get(name))
    }


def _forget_records(project: Project, older: Older) -> None:
    """Take out of dvc.lock what is not of this project in this version."""
    lock = project.root / "dvc.lock"
    if kept := _own_records(older, _records(project)):
        write_text(lock, yaml.safe_dump({"schema": "2.0", "stages": kept}, sort_keys=False))
    else:
        lock.unlink(missing_ok=True)


def _choice(project: Project, older: Older) -> Choice:
    """The choice with which conf/ composes to the older state's parameters."""
    with tempfile.TemporaryDirectory() as place:
        conf = Conf(Path(shutil.copytree(project.conf.folder, Path(place) / "conf")))
        (conf.folder / CHOICE).write_text(older.choice(project.conf).text(), encoding="utf-8")
        return choice_for(older.wanted(conf.compose().values), conf)


def _take_over(project: Project, older: Older, done: Upgraded) -> None:
    """Record the outputs that need not be made again; remove those that are made again or are no stage's."""
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    records = _records(project)
    taken = []
    remade: dict[str, str] = {}  # outputs that must be made again, and the stage that makes them
    keep = set()  # what DVC caches is kept until the stage runs
    with Repo(str(project.root)) as repo:
        for stage in repo.index.stages:  # in the order of dvc.yaml: a stage's dependencies come before it
            if not isinstance(stage, PipelineStage):
                continue
            reason = None
            if stage.name not in records:
                reason = older.objection(stage.name, _params(stage), _data(stage)) or _waits(stage, remade)
                if reason is None:
                    _bring_outputs(project, older, stage)
                    taken.append(stage)
                else:
                    done.again.append((stage.name, reason, older.seconds(stage.name)))
                    remade |= {out.def_path: stage.name for out in stage.outs}
            keep |= {out.def_path for out in stage.outs if reason is None or out.use_cache}
        # All were compared with what was made before; only now are they brought to their present form.
        for stage in taken:
            for out in stage.outs:
                convert(older, stage.name, out.def_path, cached=out.use_cache)
    done.taken = [stage.name for stage in taken]
    if taken:
        _commit(project, done.taken)
    past = [*older.lock.values(), *older.merged_lock.values()]
    for name in dict.fromkeys(out["path"] for record in past for out in record.get("outs", [])):
        path = project.root / name
        if name not in keep and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            done.removed.append(name)


def _commit(project: Project, stages: list[str]) -> None:
    """Let DVC record the outputs of these stages, as they lie here, for the code that lies here."""
    project.dvc("commit", "--force", *stages)


def _waits(stage: Any, remade: dict[str, str]) -> str | None:
    """Which stage has to run before it is known whether a stage's outputs can be taken over, in words."""
    for dep in stage.deps:
        for path, maker in remade.items():
            if f"{path}/".startswith(f"{dep.def_path}/") or dep.def_path.startswith(f"{path}/"):
                return (
                    f"it depends on what {maker} writes. To take it over if that stays the same: "
                    f"`dvc repro {maker}`, then `crt upgrade` again"
                )
    return None


def _params(stage: Any) -> dict[str, Any]:
    """The parameters of a stage of DVC's."""
    return {
        name: value
        for dep in stage.deps
        if hasattr(dep, "read_params")
        for name, value in dep.read_params().items()
    }


def _data(stage: Any) -> dict[str, str | None]:
    """The MD5 of a stage's dependencies that are neither parameters nor code; None: it is not there.

    Raises:
        UserError: Raw data is not there.
    """
    found = {}
    for dep in stage.deps:
        path = dep.def_path
        if hasattr(dep, "read_params") or path.startswith(CODE):
            continue
        if not dep.exists and path.startswith("data/"):
            raise UserError(f"{path} is missing: `dvc pull data.dvc`, then run again")
        found[path] = dep.get_hash().value if dep.exists else None
    return found


def _bring_outputs(project: Project, older: Older, stage: Any) -> None:
    """Have the outputs of a stage that DVC cached as they were made, also where the workspace lacks them."""
    record = older.record_of(stage.name)
    assert record is not None, "what has no record is not taken over"
    made = {out["path"]: out["md5"] for out in record["outs"]}
    for out in stage.outs:
        if (
            out.use_cache
            and out.def_path in made
            and not (out.exists and out.get_hash().value == made[out.def_path])
        ):
            _get(project, older, project.root / out.def_path)


def _get(project: Project, older: Older, path: Path) -> None:
    """Get an output of the older state from DVC's cache or remote.

    Raises:
        UserError: It is in neither.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    name = path.relative_to(project.root).as_posix()
    aside = project.root / ".work" / "older"
    if aside.exists():  # what a kill left
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    try:
        files = DVCFileSystem(str(project.root.resolve()), rev=older.commit)
        files.get(name, str(aside), recursive=True)
    except (OSError, DvcException) as error:
        raise UserError(
            f"{name} of {older.commit[:8]} is neither in DVC's cache nor in its remote ({error}): "
            "`dvc push` where it was made, then run again"
        ) from None
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.replace(path)
