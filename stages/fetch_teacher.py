"""Stage fetch_teacher: get the teacher that others trained, recognize it and check it on its drop."""

from pathlib import Path

from common import resume_root, root, run

from crt.config import Config, FetchedTeacher
from crt.devices import choose_device
from crt.teachers.adopt import adopt


def main(config: Config) -> None:
    teacher = config.teacher
    assert isinstance(teacher, FetchedTeacher), "the stage exists for fetched teachers only"
    adopt(
        teacher,
        config,
        Path("prepared/train") / teacher.drop,
        root(),
        resume_root() / "fetch-teacher",
        choose_device(config.runtime.device),
        folder=Path("models/teacher"),
        results=Path("results/teacher.json"),
    )


if __name__ == "__main__":
    run(main)
