"""Train the robust network that is transferred from, or fetch it (-S teacher=fetch)."""

from pathlib import Path

from common import root, run_on_all_devices, work_dir

from crt.config import Config, FetchedTeacher
from crt.data.store import open_store
from crt.devices import choose_device
from crt.processes import rank
from crt.teachers.adopt import adopt
from crt.training.fit import Files, fit

MODEL, LOG, RESULTS = (
    Path("models/teacher"),
    Path("results/teacher/training.tsv"),
    Path("results/teacher.json"),
)


def main(config: Config) -> None:
    drop = Path("prepared/train") / config.teacher.drop
    if isinstance(config.teacher, FetchedTeacher):
        if rank() > 0:
            return
        work = work_dir("fetch", config.teacher.ref, config.teacher.refs, config.teacher.sha256)
        device = choose_device(config.runtime.device)
        adopt(config.teacher, config, drop, root(), work, device, folder=MODEL, log=LOG, results=RESULTS)
    else:
        train(config, drop)


def train(config: Config, drop: Path) -> None:
    work = work_dir(
        "teacher",
        config.teacher.model_dump(),
        config.data.augment.model_dump(),
        config.sigma,
        config.seed,
        config.runtime.model_dump(),
        open_store(drop).fingerprint,
    )
    fit(
        "teacher",
        config,
        config.teacher,
        config.teacher.method,
        [drop],
        None,
        Files(MODEL, LOG, RESULTS, work),
    )


if __name__ == "__main__":
    run_on_all_devices(main)
