"""`crt anchor`: choose the release that the gate holds all later ones to, besides the one before each."""

from crt.errors import UserError
from crt.project import Project
from crt.project.choice import get
from crt.project.releases import find_release
from crt.project.takeover import take_over

LONGEST = 300  # characters of a reason


def anchor(project: Project, version: str, reason: str) -> None:
    """Make a release the anchor of the student and of the releases after it.

    Args:
        project: The repository.
        version: A release of this repository, or `latest`.
        reason: Why; the verdict prints it.

    Raises:
        UserError: Nothing is pinned, there is no such release or it has no certificates, or the reason is no
            line of text. Nothing is changed then.
    """
    said = " ".join(reason.split())
    if not 0 < len(said) <= LONGEST or not said.isprintable():
        raise UserError(f"--reason has {len(said)} characters: say why in one line of 1 to {LONGEST}")
    take_over(project)
    choice = project.choice
    if get(choice.values, ("pinned", "baseline")) is None:
        raise UserError("no release is pinned, so the gate compares with none: `crt pin` one first")
    release = find_release(project, version)
    if release.certificates_ref is None:
        raise UserError(
            f"the tag {release.tag} names no certificates to compare with: choose another release"
        )
    choice.put(("pinned", "baseline", "anchor"), {"ref": release.certificates_ref, "reason": said})
    project.choose(choice)
    print(f"{release.tag} is the anchor from now on: {said}")
    print("next: `dvc repro`, then `git commit` conf/, params.yaml and dvc.lock with the results")
