"""`crt show`: what stands in the table is what stands in the results."""

import json
import re
import shutil
from pathlib import Path

import pytest
from results_folder import DROPS, ROLES, make_results

from crt.commands.show import show, table
from crt.errors import MissingFileError
from crt.project import Project
from crt.report import formats
from crt.report.load import load_results

ROOT = Path(__file__).resolve().parents[2]


def cells(lines: list[str]) -> dict[str, list[str]]:
    split = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return {first: rest for first, *rest in split[1:]}


def test_numbers_stand_under_their_role(tmp_path):
    root = make_results(tmp_path / "root", mode="exact")
    lines = table(load_results(root, "digits", DROPS, ROLES)).splitlines()
    assert lines[0].split() == ["teacher", "student", "baseline"]
    found = cells(lines)
    for place, role in enumerate(("teacher", "student", "baseline")):
        metrics = json.loads((root / f"results/certify/details/{role}.json").read_text())
        assert found["ACR"][place] == formats.radius(metrics["acr"])
        for radius, share in metrics["certified_accuracy"].items():
            assert found[f"certified accuracy at {radius}"][place] == f"{100 * share:.1f} %"
    assert found["parameters"] == ["271,000", "11,170,000", "–"]


def test_an_adaptive_acr_is_called_a_bound(tmp_path):
    text = table(load_results(make_results(tmp_path / "root", mode="adaptive"), "digits", DROPS, ROLES))
    assert "ACR (at least)" in cells(text.splitlines())


def project(root: Path) -> Project:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "conf", root / "conf")
    return Project(root)


def test_the_whole_page(tmp_path, capsys):
    root = make_results(tmp_path / "root", baseline=None)
    show(project(root))
    said = capsys.readouterr()
    assert "baseline" not in said.out.splitlines()[0]
    assert "\nGate: no baseline. No baseline is pinned" in said.out
    assert str((root / "report/index.html").resolve()) in said.out
    assert said.err == ""
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("sigma: 0.25", "sigma: 0.5"))
    show(Project(root))
    assert "params.yaml differs from conf/: sigma=0.5" in capsys.readouterr().err


def test_before_the_first_run(tmp_path):
    with pytest.raises(MissingFileError, match=r"results/.* is missing: make it first"):
        show(project(tmp_path))
