"""`crt compose` and `crt apply`: choose options and values, by name or by an experiment that has them."""

from collections.abc import Sequence
from typing import Any

from crt.commands.pin import unpin_misfits
from crt.errors import UserError
from crt.project import Project
from crt.project.choice import FACTS, PINS, Choice, differences, dotted, get
from crt.project.takeover import take_over


def compose(project: Project, overrides: Sequence[str] = (), *, reset: bool = False) -> None:
    """Write choices to conf/choice.yaml, and params.yaml from conf/.

    Args:
        project: The repository.
        overrides: Hydra's: `student=convnext` chooses an option, `sigma=0.5` a value, `~sigma` takes it back.
        reset: Take back all choices first, except what lies in data/ and what is pinned.

    Raises:
        UserError: An option or key that does not exist, a value that does not fit, or a parameter that is to
            be taken away though it was not chosen.
    """
    take_over(project)
    choice = project.choice
    if reset:
        choice = choice.only(("preset",), (*FACTS, *PINS))
    choice = chosen(project, choice, overrides)
    unpin_misfits(project, choice)
    project.choose(choice)


def chosen(project: Project, choice: Choice, overrides: Sequence[str]) -> Choice:
    """`choice` with what Hydra's overrides ask for. An option drops the values that were chosen for another.

    Raises:
        UserError: See `compose`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{reason}: write KEY=VALUE, +KEY=VALUE or ~KEY, and quote what has spaces") from None
    choice, conf = choice.copy(), project.conf
    back = [one for one in parsed if one.is_delete()]
    for one in back:
        _take_back(choice, _name(one))
    asked = [one for one in parsed if not one.is_delete()]
    if not asked:
        return choice
    texts = [str(one.input_line) for one in asked]
    options = {
        _name(one): str(one.value()) for one in asked if not one.is_add() and conf.is_group(one.key_or_group)
    }
    before = conf.compose(choice).options
    after = conf.compose(choice, texts).options
    for group, option in after.items():
        if before.get(group) != option:
            conf.forget(choice, group, (before.get(group), option))
    target = conf.compose(choice, texts).values
    choice.options.update(options)
    for one in asked:
        path = tuple(_name(one).split("."))
        if _name(one) not in options and get(target, path) is not None:
            choice.put(path, get(target, path))
    for path, (_, wanted) in differences(conf.compose(choice).values, target).items():
        choice.put(path, wanted)
    left = differences(conf.compose(choice).values, target)
    if left:
        raise UserError(
            f"{' '.join(texts)} cannot be kept as a choice (at {', '.join(map(dotted, left))}): "
            "edit conf/ instead"
        )
    return choice


def _name(override: Any) -> str:
    """The group, with its package, or the key of an override."""
    name: str = override.key_or_group
    return f"{name}@{override.package}" if override.package else name


def _take_back(choice: Choice, name: str) -> None:
    if choice.options.pop(name, None) is None and not choice.drop(tuple(name.split("."))):
        raise UserError(
            f"~{name} takes a choice back, but {name} is not chosen in conf/choice.yaml; "
            f"a parameter itself cannot be taken away: leave ~{name} out"
        )


def apply(project: Project, experiment: str) -> None:
    """Make an experiment the workspace, as `dvc exp apply` does, and keep its choices.

    Raises:
        UserError: There is no such experiment, or a choice that was never committed would be lost.
    """
    if project.git("status", "--porcelain", "--untracked-files=no", "--", "conf"):
        raise UserError(
            "conf/ is not committed, and the experiment's would replace it: `git commit` it, "
            "or take it back with `git checkout HEAD conf params.yaml`, then run again"
        )
    project.dvc("exp", "apply", experiment)
    take_over(project)
