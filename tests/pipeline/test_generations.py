"""Several students as experiments: one fails, the others go on; a second run repeats nothing."""

import json
import re

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_one_fails_and_the_others_go_on(project):
    # DVC reads git's configuration for an experiment of its own folder; `make setup` writes there.
    driver = re.search(r'git config merge\.crt\.driver "(.+?)"', (project.root / "Makefile").read_text())[1]
    project.run("git", "config", "merge.crt.driver", driver.replace("$(VENV)", ".venv"))
    (project.root / "conf/student/broken.yaml").write_text("defaults: [_sgd, _self_]\nkey: broken\n")
    network = "arch: resnet18x\nargs_for: resnet18x\narch_args: {}\nepochs: 45\n"
    (project.root / "conf/network/tiny/broken.yaml").write_text(network)
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
