"""`crt compose`: params.yaml from conf/."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from crt.config import Config, validate
from crt.errors import UserError


def composed(root: Path, overrides: Sequence[str]) -> tuple[str, Config]:
    """The text of params.yaml that `conf/` and `overrides` (Hydra's grammar) give, and the validated parameters.

    Raises:
        UserError: an option or key that does not exist, or a value that does not fit the schema.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str((root / "conf").resolve()), version_base=None):
            config = compose("config", overrides=list(overrides))
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        # Hydra lists files that are no options (their names begin with _) and where it has searched.
        message = " ".join(str(error).split()).partition(" Config search path:")[0]
        message = re.sub(r"(?<= )_\w+ ", "", message)
        raise UserError(f"conf/ does not compose with {list(overrides)}: {message}") from None
    # The very text that DVC writes under `dvc exp run`, so that the two never differ.
    text = OmegaConf.to_yaml(config)
    return text, validate(OmegaConf.to_container(config), "conf/")


def compose_params(root: Path, overrides: Sequence[str] = ()) -> None:
    """Write `root`/params.yaml from `root`/conf and overrides; it is replaced only when everything fits.

    Raises:
        UserError: see `composed`.
    """
    text, config = composed(root, overrides)
    if config.student.args_for != config.student.arch:
        from crt.models.build import check_arch  # seconds to import

        check_arch(config.student.arch)  # else it would fail only after the teacher was trained
    aside = root / "params.yaml.partial"
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, root / "params.yaml")
