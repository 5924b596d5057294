"""`crt release`: register the student as a version of the artifact `student`, if the gate lets it pass.

Nothing is written but one annotated tag, and that last: a kill leaves the release made or not made.
"""

import json
import sys
from typing import Any, Literal

from crt.config import Anchored, Config
from crt.errors import UserError, first_ten
from crt.evaluation.anchor import apart
from crt.project import Project
from crt.project.data import has_default_remote
from crt.project.releases import (
    ARTIFACT,
    Release,
    candidates,
    check_tags,
    list_releases,
    next_version,
    withdrawn_at,
)
from crt.project.takeover import take_over
from crt.report import formats
from crt.report.load import read_json

OURS = ("conf", "crt", "results", "stages")  # where files that git does not know yet belong to the student


def release(project: Project, bump: Literal["major", "minor", "patch"] = "minor") -> None:
    """Tag HEAD as the next version of the student.

    Everything must be committed and up to date, so that the tag names what was certified; the data goes to
    the default remote first, so that whoever sees the tag can get the model.

    Raises:
        UserError: something is not committed or not up to date, the gate has not passed, the student is a
            release already, or the remote cannot be reached. Nothing is tagged then.
    """
    take_over(project)
    config = project.params
    author = _check_author(project)
    check_tags(project)
    _check_committed(project)
    _check_up_to_date(project)
    before = list_releases(project)
    head = project.git("rev-parse", "HEAD").strip()
    for old in before:
        if old.commit == head:  # made by an earlier run, which was perhaps killed before it said so
            print(f"this commit is {old.tag} already")
            _say_next(old.tag)
            return
    if withdrawn := withdrawn_at(project, head):
        raise UserError(f"this commit is {withdrawn}, which was withdrawn: retrain and commit first")
    gate = read_json(project.root / "results/gate/details.json")
    begins = _begins(project, before, bump) if gate.get("verdict") == "no baseline" else None
    if begins is None:
        _check_gate(gate, before, config)
    found = facts(project, config, gate) | {
        "anchor": _anchor(config, gate),
        "begins": begins,
        "candidates": _candidates(project, before, config),
    }
    for old in before:
        if old.facts.get("model_fingerprint") == found["model_fingerprint"]:
            raise UserError(
                f"this student is the release {old.version} already, to the byte: retrain it first"
            )
    remote = has_default_remote(project)
    if remote:
        print("pushing models, certificates and data to the default remote", file=sys.stderr)
        project.dvc("push", quiet=False)
    made = _register(project, next_version(project, bump), found, author)
    print(f"{made} is registered: {_sentence(found)}")
    if not remote:
        print("its data is on this machine only: `dvc remote add -d NAME URL` and `dvc push` share it")
    _say_next(made)


def _begins(project: Project, before: list[Release], bump: str) -> str | None:
    """Why this release begins a chain, since no other can be compared with it; None: it begins none.

    Raises:
        UserError: One begins, and its version would not be a major one.
    """
    if not before:
        return None
    newest, path = before[0], "models/student/model.json"
    begins = apart(
        read_json(project.root / path), json.loads(project.read_at(newest.tag, path)), newest.version
    )
    if begins is None:
        return None
    if bump != "major":
        raise UserError(
            f"{begins}, so that this release begins a chain of its own: it takes a new major version, "
            "`crt release --bump major`"
        )
    return begins


def _anchor(config: Config, gate: dict[str, Any]) -> dict[str, Any] | None:
    """The anchor of this release's successors; None: it is the first of a chain, and so the anchor."""
    pinned = config.pinned.get("baseline")
    compared = gate.get("anchor") or {"begins": ""}
    if not isinstance(pinned, Anchored) or compared["begins"] is not None:
        return None
    return pinned.anchor.model_dump()


def _candidates(project: Project, before: list[Release], config: Config) -> int | None:
    """How many students were judged against the same baseline, with this one; None: that is not known."""
    pinned = config.pinned.get("baseline")
    release = next((old for old in before if pinned is not None and old.ref == pinned.ref), None)
    return None if release is None else candidates(project, release)


def _say_next(tag: str) -> None:
    print(f"next: `git push --atomic origin HEAD {tag}` shares it; `crt ingest` compares with it from now on")


def facts(project: Project, config: Config, gate: dict[str, Any]) -> dict[str, Any]:
    """What the tag's message records: the model, where it comes from, and what the gate compared it with."""
    from crt.models.checkpoint import load_info, model_fingerprint
    from crt.references.fetch import sha256_of
    from crt.references.locate import WEIGHTS

    root = project.root
    folder = root / "models" / "student"
    info = load_info(folder)
    metrics = read_json(root / "results/certify/details/student.json")
    refs = {role: pinned.ref for role, pinned in config.pinned.items()}
    return {
        "arch": info.arch,
        "sigma": info.sigma,
        "drops": config.data.drops,
        "acr": metrics["acr"],
        "certified_accuracy": metrics["certified_accuracy"],
        "gate": gate["verdict"],
        "baseline": refs.get("baseline"),
        "init": refs.get("init") if info.init_fingerprint is not None else None,
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "model_fingerprint": model_fingerprint(folder),
        "data_fingerprint": info.data_fingerprint,
        "teacher_fingerprint": info.teacher_fingerprint,
        "certificates_sha256": sha256_of(root / "certificates/student.tsv"),
    }


def _check_author(project: Project) -> tuple[str, str]:
    """Whose release it is, by git's settings or its variables in the environment: name and e-mail.

    Raises:
        UserError: git does not know.
    """
    try:
        said = project.git("-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT")
    except UserError:
        raise UserError(
            "git does not know whose release this is: "
            "`git config user.name ...` and `git config user.email ...`"
        ) from None
    name, _, rest = said.partition(" <")
    return name, rest.partition(">")[0]


def _check_committed(project: Project) -> None:
    project.git("rev-parse", "HEAD")
    changed = [line[3:] for line in project.git("status", "--porcelain", "--untracked-files=no").splitlines()]
    new = project.git("status", "--porcelain", "--untracked-files=all", "--", *OURS)
    changed += [line[3:] for line in new.splitlines() if line.startswith("??")]
    if changed:
        raise UserError(
            f"what is not committed cannot be released: `git commit` {first_ten(changed)}, then run again"
        )


def _check_up_to_date(project: Project) -> None:
    # What else DVC tracks, such as imports of deliveries, is no input of the pipeline, and need not be here.
    status = json.loads(project.dvc("status", "--json"))
    behind = sorted(name for name in status if name == "data.dvc" or not name.endswith(".dvc"))
    if behind:
        raise UserError(
            f"the results are not those of the present data, code and parameters ({first_ten(behind)}): "
            "`dvc repro`, `git commit`, then run again"
        )


def _check_gate(gate: dict[str, Any], before: list[Release], config: Config) -> None:
    verdict = gate.get("verdict")
    if verdict == "pass" or (verdict == "no baseline" and not before):
        return
    said = " ".join(gate.get("sentences", [])[:1])
    remedy = {
        "no baseline": (
            f"run `crt pin {before[0].version if before else ''}`, `dvc repro`, `git commit`, then this again"
        ),
        "undecided": _more_images(gate, config)
        + " or accept wider margins (gate.margin, gate.acr_margin; docs/gate.md)",
        "fail": "retrain, or accept wider gate.margins (docs/gate.md)",
    }.get(str(verdict), "run `dvc repro`")
    pinned = config.pinned.get("baseline")
    against = f" against {pinned.ref.partition('#')[0]}" if pinned else ""
    raise UserError(
        f"the gate's verdict{against} is {verdict}, so this is no release. {said} The remedy: {remedy}"
    )


def _more_images(gate: dict[str, Any], config: Config) -> str:
    most = config.certify.max_images
    if config.certify.stride == 1 and (most is None or gate.get("images", most) < most):
        return "all test images are certified already: add to the test set (data/test)"
    return "certify more test images (certify.stride, certify.max_images)"


def _register(project: Project, version: str, found: dict[str, Any], author: tuple[str, str]) -> str:
    """The new tag's name."""
    from gto.api import register
    from gto.exceptions import GTOException

    message = f"{_sentence(found)}\n\n{json.dumps(found, indent=2, ensure_ascii=False)}\n"
    try:
        made = register(
            str(project.root.resolve()),
            ARTIFACT,
            "HEAD",
            version=version,
            message=message,
            author=author[0],
            author_email=author[1],
        )
    except GTOException as error:
        raise UserError(f"the version cannot be registered ({error})") from None
    return str(made.tag)


def _sentence(found: dict[str, Any]) -> str:
    certified = ", ".join(
        f"{formats.percent(share)} at {radius}" for radius, share in found["certified_accuracy"].items()
    )
    acr = formats.radius(found["acr"], digits=4)
    return f"{found['arch']}, ACR {acr}, certified {certified}, gate: {found['gate']}"
