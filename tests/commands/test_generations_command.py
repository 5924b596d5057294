"""The table of `crt generations`; a whole run is in tests/pipeline/test_generations.py."""

import re

from crt.commands.generations import Experiment, table

METRICS = {
    "results/certify/student.json": {"data": {"acr": 0.4, "smoothed_acc": 0.9, "cert_0.25": 0.5}},
    "results/certify/teacher.json": {"data": {"teacher_acr": 0.5}},
}


def experiment(key: str, method: str, seconds: float) -> Experiment:
    student = {"key": key, "arch": f"{key}18", "lr": 0.1}
    return Experiment({"student": student, "method": {"name": method}}, METRICS, 1234, seconds)


def test_one_row_for_each_student():
    ours = experiment("resnet", "crt", 50)
    direct = [experiment("resnet", "smoothadv", 1000), experiment("convnext", "smoothadv", 10)]
    lines = table({"vgg": None, "resnet": ours}, [ours, *direct]).splitlines()
    cells = [re.split(r"\s{2,}", line.rstrip()) for line in lines]
    assert cells == [
        [
            "student", "architecture", "parameters", "training", "ACR", "share of teacher", "smoothed",
            "at 0.25", "cost",
        ],
        ["vgg", *"–" * 8],
        ["resnet", "resnet18", "1,234", "50 s", "0.400", "0.800", "90.0 %", "50.0 %", "0.05"],
    ]  # fmt: skip
    assert "0.05" not in table({"resnet": direct[0]}, direct), "direct training has no such cost"
