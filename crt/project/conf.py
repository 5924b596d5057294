"""conf/: what it composes to, with any choice, without changing it."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, Self

import yaml

from crt.errors import UserError
from crt.project.choice import FACTS, Choice, Path, leaves

CHOICE = "choice.yaml"


@dataclass(frozen=True)
class Composed:
    """What conf/ composes to."""

    text: str  # of params.yaml: the very text that DVC writes under `dvc exp run`
    values: dict[str, Any]
    options: dict[str, str]  # of all groups
    derived: frozenset[Path]  # the values that follow from others, by interpolation


class Conf:
    """A folder of Hydra groups with a config.yaml and a choice.yaml.

    Only the last is changed while this object lives.

    Args:
        folder: conf/, or a copy of it.
    """

    def __init__(self, folder: File) -> None:
        self.folder = folder
        self._known: dict[tuple[str, ...], Composed] = {}

    @property
    def choice(self) -> Choice:
        """What choice.yaml holds.

        Raises:
            UserError: It is missing or is no choice.
        """
        from omegaconf import OmegaConf

        path = self.folder / CHOICE
        try:
            raw = OmegaConf.to_container(OmegaConf.load(path))
        except FileNotFoundError:
            raise UserError(f"{path} is missing: restore it with git") from None
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} cannot be read ({reason}): restore it with git") from None
        return Choice.parse(raw or None, str(path))

    def with_choice(self, choice: Choice) -> Self:
        """The same folder with another choice. It is written there: for a copy of conf/."""
        (self.folder / CHOICE).write_text(choice.text(), encoding="utf-8")
        return type(self)(self.folder)

    def compose(self, choice: Choice | None = None, overrides: Sequence[str] = ()) -> Composed:
        """What it composes to with that choice (None: that of choice.yaml) and overrides in Hydra's grammar.

        Raises:
            UserError: An option or key that does not exist.
        """
        text = (choice or self.choice).text()
        key = (text, *overrides)
        if key not in self._known:  # composing takes a tenth of a second
            with tempfile.TemporaryDirectory() as place:
                for path in self.folder.resolve().iterdir():
                    (File(place) / path.name).symlink_to(path)
                (File(place) / CHOICE).unlink(missing_ok=True)
                (File(place) / CHOICE).write_text(text, encoding="utf-8")
                self._known[key] = _compose(File(place), overrides)
        return self._known[key]

    def is_group(self, name: str) -> bool:
        """Whether there are options of that name."""
        return (self.folder / name).is_dir()

    def options(self, group: str) -> list[str]:
        """The options of a group."""
        return sorted(path.stem for path in (self.folder / group).glob("[!_]*.yaml"))

    def forget(self, choice: Choice, group: str, options: Sequence[str | None]) -> None:
        """Drop from `choice` what was chosen for one of a group's options, because another is chosen.

        These are the values below the group's name. Where an option's settings lie elsewhere (a preset's, a
        network's), they are what one of these options sets, and the options that it selects.
        """
        name, _, package = group.partition("@")
        for option in options:
            path = self.folder / name / f"{option}.yaml"
            if option is None or not path.is_file():
                continue
            text = path.read_text(encoding="utf-8")
            header = re.search(r"(?m)^#\s*@package\s+(\S+)", text)
            place = package or (header[1] if header else name)
            if place == name:
                choice.drop((name,), keep=FACTS)
                continue
            raw = yaml.safe_load(text) or {}
            for entry in raw.pop("defaults", []):
                for key in entry if isinstance(entry, dict) else ():
                    choice.options.pop(str(key).removeprefix("override /"), None)
            above = () if place == "_global_" else tuple(place.split("."))
            # A preset sets single values of many sections; a network all of its arguments together.
            for key in [found for found, _ in leaves(raw)] if not above else [(found,) for found in raw]:
                if (*above, *key) not in FACTS:
                    choice.drop((*above, *key))


def _compose(folder: File, overrides: Sequence[str]) -> Composed:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(folder.resolve()), version_base=None):
            config = compose("config", overrides=list(overrides), return_hydra_config=True)
        with open_dict(config):
            options: Any = OmegaConf.to_container(config.pop("hydra").runtime.choices)
        raw: Any = OmegaConf.to_container(config)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        # Hydra lists files that are no options (their names begin with _) and where it has searched.
        message = " ".join(str(error).split()).partition(" Config search path:")[0]
        message = re.sub(r"(?<= )_\w+ ", "", message)
        asked = f" with {' '.join(overrides)}" if overrides else ""
        raise UserError(f"conf/ does not compose{asked}: {message}") from None
    except yaml.YAMLError as error:
        raise UserError(f"conf/ holds a file that is not YAML: {' '.join(str(error).split())}") from None
    values: Any = OmegaConf.to_container(config)
    chosen = {str(group): option for group, option in dict(options).items() if not group.startswith("hydra/")}
    derived = frozenset(path for path, value in leaves(raw) if "${" in str(value))
    return Composed(OmegaConf.to_yaml(config), values, chosen, derived)
