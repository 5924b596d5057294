"""Take over into conf/choice.yaml what an experiment (or a person) put into params.yaml alone.

What was put there is the difference between params.yaml and what conf/ composes to *at the last commit*: an
edit of conf/ since then is no such difference, and stays. It is written as options and values, and proved by
composing them again.
"""

import hashlib
from typing import Any

from crt.errors import UserError
from crt.files import write_text
from crt.project.choice import Choice, Path, differences, dotted, get, leaves
from crt.project.conf import Conf
from crt.project.repository import Project

# The parameter that holds the name of the chosen option.
NAMES = {
    "preset": ("preset",),
    "teacher": ("teacher", "key"),
    "student": ("student", "key"),
    "method": ("method", "name"),
    "split": ("certify", "split"),
}


def take_over(project: Project) -> None:
    """Make params.yaml and conf/ agree, and print what was changed for it.

    Raises:
        UserError: conf/ does not compose, params.yaml holds what no choice can say, or both were changed in
            different ways.
    """
    if not project.params_file.exists():
        project.choose(project.choice)
        return
    params, now = project.read_params(), project.conf.compose()
    if params == now.values:
        return
    choice = project.choice
    if not project.is_ours(project.params_file) and not project.is_merged():
        with project.committed_conf() as committed:
            choice = _with(choice, _left_over(project, params, committed), project.conf)
    said = _NewChoices(project.choice, choice)
    project.choose(choice)
    if said:
        print(f"taken over from params.yaml into conf/choice.yaml: {said}")
        print("  (`git checkout HEAD conf params.yaml` goes back to what was committed)")
    follows = differences(params, project.read_params())
    if follows:
        print(
            "params.yaml follows conf/: " + ", ".join(_change(path, *pair) for path, pair in follows.items())
        )


def difference(project: Project) -> str | None:
    """How params.yaml differs from what conf/ composes to, in words; None: it does not.

    Raises:
        UserError: conf/ does not compose, or params.yaml is no YAML mapping.
    """
    params = project.read_params()
    found = differences(project.conf.compose().values, params)
    if not found:
        return None
    try:
        return str(_NewChoices(project.choice, choice_for(params, project.conf)))
    except UserError:  # no choice says it
        return ", ".join(
            f"{dotted(path)} is {now} instead of {before}" for path, (before, now) in found.items()
        )


def new_difference(project: Project) -> str | None:
    """`difference`, once for each state of conf/ and params.yaml; after that it takes milliseconds.

    What cannot be composed is said too, and is no error: the caller does something else.
    """
    digest = hashlib.sha256()
    for path in (*sorted(project.conf.folder.rglob("*.yaml")), project.params_file):
        digest.update(path.read_bytes())
    memory = project.scratch / "compared.txt"
    if memory.exists() and memory.read_text(encoding="utf-8") == digest.hexdigest():
        return None
    try:
        said = difference(project)
    except UserError as error:
        said = str(error)
    write_text(memory, digest.hexdigest())
    return said


class _NewChoices:
    """What one choice has and another has not."""

    def __init__(self, before: Choice, after: Choice) -> None:
        self.before = before
        self.options = {
            group: option for group, option in after.options.items() if before.options.get(group) != option
        }
        changed = differences(before.values, after.values)
        there = dict(leaves(after.values))
        self.values = {path: there[path] for path in changed if path in there}
        self.dropped = [path for path in changed if path not in there]

    def __bool__(self) -> bool:
        return bool(self.options or self.values or self.dropped)

    def __str__(self) -> str:
        return ", ".join(
            [
                *(f"{group}={option}" for group, option in self.options.items()),
                *(f"{dotted(path)}={_plain(value)}" for path, value in self.values.items()),
                *(f"{dotted(path)} as conf/ has it" for path in self.dropped),
            ]
        )


def _left_over(project: Project, params: dict[str, Any], committed: Conf | None) -> _NewChoices:
    """What has to be chosen, so that the committed conf/ and what was chosen since compose to `params`."""
    base = committed or project.conf
    try:
        if base.compose().values == params:
            return _NewChoices(base.choice, base.choice)
    except UserError:  # it was committed broken
        base = project.conf
    if base is committed and project.is_ours(project.choice_file):
        base = base.with_choice(project.choice)
    return _NewChoices(base.choice, choice_for(params, base))


def choice_for(params: dict[str, Any], conf: Conf) -> Choice:
    """The choice with which `conf` composes to `params`, near to its present one.

    Raises:
        UserError: There is none; what cannot be chosen is named.
    """
    choice = _options_for(params, conf)
    found = conf.compose(choice)
    for path, (composed, wanted) in differences(found.values, params).items():
        if not _is_there(params, path):
            choice.drop(path)
        elif composed != {} and path not in found.derived:
            choice.put(path, wanted)
    left = _differing(choice, params, conf)
    while left:
        # Of values that follow from others, the one that explains most.
        tried = [choice.copy() for path in left if _is_there(params, path)]
        for one, path in zip(tried, (path for path in left if _is_there(params, path)), strict=True):
            one.put(path, get(params, path))
        nearest = min(tried, key=lambda one: len(_differing(one, params, conf)), default=choice)
        if len(nearer := _differing(nearest, params, conf)) >= len(left):
            break
        choice, left = nearest, nearer
    if left:
        raise UserError(
            f"params.yaml {'lacks' if all(not _is_there(params, path) for path in left) else 'has'} "
            f"{', '.join(map(dotted, left))}, which no choice in conf/ can say: "
            "delete params.yaml to follow conf/, then run again"
        )
    return choice


def _options_for(params: dict[str, Any], conf: Conf) -> Choice:
    """The present choice with the options that `params` names, or that come nearest to it."""
    choice = conf.choice
    apart = _differing(choice, params, conf)
    for group in (
        *NAMES,
        *(group for group in conf.compose(choice).options if group not in NAMES and "@" not in group),
    ):
        path = NAMES.get(group, (group,))
        if all(other[0] != path[0] for other in apart):
            continue
        present, name = conf.compose(choice).options.get(group), get(params, path)
        for option in conf.options(group):
            if option == present or (group in NAMES and option != name and not option.startswith(f"{name}_")):
                continue
            other = choice.copy()
            conf.forget(other, group, (present, option))
            other.options[group] = option
            if len(nearer := _differing(other, params, conf)) < len(apart):
                choice, apart = other, nearer
    return choice


def _differing(choice: Choice, params: dict[str, Any], conf: Conf) -> list[Path]:
    return list(differences(conf.compose(choice).values, params))


def _with(choice: Choice, said: _NewChoices, conf: Conf) -> Choice:
    """`choice` and what is left over; what conf/ gives by itself is not repeated.

    Raises:
        UserError: A value was chosen in conf/ since, and another one in params.yaml.
    """
    merged = choice.copy()
    for group, option in said.options.items():
        _check_one_changed(group, said.before.options.get(group), choice.options.get(group), option)
        merged.options[group] = option
    for path in said.dropped:
        merged.drop(path)
    found = conf.compose(merged).values
    for path, value in said.values.items():
        _check_one_changed(dotted(path), get(said.before.values, path), get(choice.values, path), value)
        if get(found, path) != value or not _is_there(found, path):
            merged.put(path, value)
    return merged


def _check_one_changed(name: str, before: Any, chosen: Any, left_over: Any) -> None:
    if chosen not in (before, left_over):
        raise UserError(
            f"{name} is {_plain(left_over)} in params.yaml and {_plain(chosen)} in conf/choice.yaml, and "
            "both are new: delete params.yaml to keep the latter, or `git checkout conf/choice.yaml` to keep "
            "the former, then run again"
        )


def _is_there(values: dict[str, Any], path: Path) -> bool:
    missing = object()
    return get(values, path, missing) is not missing


def _change(path: Path, before: Any, after: Any) -> str:
    return f"{dotted(path)} {_plain(before)} -> {_plain(after)}"


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
