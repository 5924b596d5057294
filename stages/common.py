"""What the stage scripts share: reading params.yaml, errors in one sentence, the folder for resume files."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

try:
    from crt.commands.remedies import explained
    from crt.config import Config, load
    from crt.errors import UserError
    from crt.memory import keep_freed_memory
except ModuleNotFoundError as error:
    sys.exit(
        f"{error}: activate the project's environment first (`source .venv/bin/activate`, or use `make`)"
    )

keep_freed_memory()


def run(stage: Callable[[Config], None]) -> None:
    """Run a stage on the validated params.yaml; a wrong input or a full disk ends in one sentence."""
    try:
        _say_difference()
        stage(load())
    except UserError as error:
        sys.exit(f"error: {explained(error)}")
    except OSError as error:
        sys.exit(f"error: {error}: free space or correct the path, then run again; finished work is kept")
    except KeyboardInterrupt:
        sys.exit(
            "interrupted: run again to go on from what is done (training: from its last checkpoint, of which "
            "there is one every 20 s)"
        )


def _say_difference() -> None:
    """Name what params.yaml has and conf/ has not, such as an experiment's choices, once for each change."""
    if (
        os.environ.get("RANK", "0") == "0"
        and Path("conf/choice.yaml").is_file()
        and Path("dvc.yaml").is_file()
    ):
        from crt.project import Project
        from crt.project.takeover import new_difference

        if said := new_difference(Project()):
            print(f"params.yaml differs from conf/: {said} (`crt compose` takes it over)", file=sys.stderr)


def run_on_all_devices(stage: Callable[[Config], None]) -> None:
    """`run` in `runtime.processes` processes that share the work; under torchrun, in its processes."""
    try:
        processes = load().runtime.processes
    except UserError as error:
        sys.exit(f"error: {error}")
    if processes == 1 or "RANK" in os.environ:
        run(stage)
        return
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What `torchrun --standalone` does, without its report of the failure: the processes have said why.
    settings = LaunchConfig(1, 1, processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    try:
        elastic_launch(settings, sys.executable)(*sys.argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(f"process {rank} of {processes} ended with status {failure.exitcode}: see above")


def root() -> Path:
    """The repository's root, also from within the temporary folder of a `dvc exp run --temp`."""
    return Path(os.environ.get("DVC_ROOT", "."))


def resume_root() -> Path:
    """The folder of resume files; it outlives the temporary folder of a `dvc exp run --temp`."""
    return root() / ".work"
