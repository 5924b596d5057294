"""`crt upgrade`: make a project of an older version, into which this one was merged, one of this version."""

from crt.project import Project
from crt.project.older import Older
from crt.project.releases import list_releases
from crt.project.upgrade import Upgraded, is_merging
from crt.project.upgrade import upgrade as run
from crt.report.formats import duration


def upgrade(project: Project) -> None:
    """Move choices, take over outputs, and say what must run again. Nothing runs.

    Raises:
        UserError: Files are in conflict that people have to look at, or a file that has to be there is
            missing.
    """
    older = Older.find(project)
    done = None if older is None else run(project, older)
    if older is None or not done:
        print("there is nothing to do: no older version's choices or results are left to take over")
        return
    _say(project, older, done)


def _say(project: Project, older: Older, done: Upgraded) -> None:
    if done.choice is not None:
        print("moved to conf/choice.yaml:")
        print(
            "".join(f"  {line}\n" for line in done.choice.text().splitlines() if not line.startswith("#")),
            end="",
        )
    for name in done.theirs:
        print(
            f"both sides had changed {name}, and this version's was taken; values in use are in "
            f"conf/choice.yaml. Yours:\n  git show {older.commit[:8]}:{name}"
        )
    pinned = ", ".join(f"{role} {ref.partition('#')[0]}" for role, ref in older.pins.items())
    releases = ", ".join(release.version for release in list_releases(project))
    print(
        f"kept: drops {', '.join(older.params['data']['drops'])}; releases {releases or 'none'}; "
        f"pinned {pinned or 'nothing'}"
    )
    if done.taken:
        print("taken over, since nothing but code has changed; none of it runs again:")
        for name in done.taken:
            print(f"  {name}{_cost(older.seconds(name))}")
    if done.removed:
        print(
            f"removed: {len(done.removed)} files and folders that no stage writes any more, "
            "or that are written again"
        )
    if done.again:
        print("must run:")
        for name, reason, seconds in done.again:
            print(f"  {name}{_cost(seconds)}: {reason}")
    end = "`git commit` ends the merge; then " if is_merging(project) else ""
    print(f"next: {end}`dvc repro`, `git add -A`, `git commit`, `dvc push`")


def _cost(seconds: float | None) -> str:
    return "" if seconds is None else f" (took {duration(seconds)})"
