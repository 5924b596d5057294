"""Several students as experiments: one fails, the others go on; a second run repeats nothing; what it costs."""

import json
import re

import pytest

from crt.commands.generations import table

pytestmark = pytest.mark.slow


def experiment(key: str, method: str, seconds: float, acr: float = 0.4) -> dict:
    student = {"key": key, "arch": f"{key}18", "lr": 0.1}
    return {
        "params": {"params.yaml": {"data": {"student": student, "method": {"name": method}}}},
        "metrics": {
            "results/certify/student.json": {
                "data": {"acr": acr, "certified_accuracy": {"0.0": 0.9, "0.25": 0.5}}
            },
            "results/student.json": {"data": {"train_seconds": seconds, "parameters": 1234}},
            "results/gate.json": {"data": {"vs_teacher": {"acr_share": 0.987}}},
        },
    }


def test_the_table():
    ours = experiment("resnet", "crt", 50)
    direct = [experiment("resnet", "smoothadv", 1000), experiment("convnext", "smoothadv", 10)]
    lines = table({"resnet": ours, "vgg": None}, [ours, *direct])
    cells = [re.split(r"\s{2,}", line) for line in lines]
    heads = ["student", "architecture", "parameters", "training", "ACR", "share of teacher", "at 0.0", "at 0.25", "cost"]  # fmt: skip
    values = ["resnet", "resnet18", "1,234", "50 s", "0.400", "0.987", "90.0 %", "50.0 %", "0.05"]
    assert cells == [heads, values, ["vgg", *"–" * 8]]
    assert "0.05" not in "".join(table({"resnet": direct[0]}, direct)), "direct training has no such cost"


def test_one_fails_and_the_others_go_on(project):
    # DVC reads git's configuration for an experiment of its own folder; `make setup` writes there.
    driver = re.search(r'git config merge\.crt\.driver "(.+?)"', (project.root / "Makefile").read_text())[1]
    project.run("git", "config", "merge.crt.driver", driver.replace("$(VENV)", ".venv"))
    broken = "defaults: [_sgd, _self_]\nkey: broken\narch: resnet18x\narch_args: {}\nbfloat16_on_cpu: true\n"
    (project.root / "conf/student/broken.yaml").write_text(broken)
    project.commit("a student that cannot be built")
    before = (project.root / "params.yaml").read_text()
    command = ("crt", "generations", "broken", "regnet", "-S", "+experiment=smoke")
    done = project.run(*command, check=False)
    assert done.returncode == 1
    assert "broken failed" in done.stderr
    assert "did you mean resnet18" in done.stderr + done.stdout
    _, first, second = done.stdout.splitlines()
    assert first.split()[:3] == ["broken", "–", "–"]
    assert second.split()[:3] == ["regnet", "regnetx_002", "117,994"]
    assert (project.root / "params.yaml").read_text() == before, "the workspace is left alone"
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    assert sum(len(entry["experiments"] or []) for entry in shown) == 1

    again = project.run("crt", "generations", "regnet", "-S", "+experiment=smoke")
    assert "regnet: is there already" in again.stderr
    assert again.stdout.splitlines()[1] == second

    chosen = project.run("crt", "generations", "regnet", "-S", "student=vit", check=False)
    assert chosen.returncode == 1
    assert "student=vit is for all students" in chosen.stderr

    unknown = project.run("crt", "generations", "regnet", "nothing", check=False)
    assert unknown.returncode == 1
    assert "nothing" in unknown.stderr
