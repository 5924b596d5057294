import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from prepared_drops import write_prepared
from results_folder import DROPS, make_results

from crt.evaluation.gate import Margins

ROOT = Path(__file__).parents[2]


def run_stage(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "stages" / f"{name}.py"
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_gate_and_report_stages(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    gate = yaml.safe_load(text)["gate"]
    make_results(tmp_path, margins=Margins(gate["margin"], gate["margins"], gate["acr_margin"]))
    assert all(drop in text for drop in DROPS)
    text = text.replace("against: teacher", "against: baseline").replace(
        "  student: {}\n", "  student: {}\n  baseline: {}\n"
    )
    text = text.replace("pinned: {}", "pinned:\n  baseline:\n    ref: registry:student@v1.0.0")
    (tmp_path / "params.yaml").write_text(text)
    details, history = (tmp_path / "results/gate" / name for name in ("details.json", "history.json"))
    expected, past = details.read_bytes(), history.read_bytes()
    details.unlink()
    history.unlink()

    gate = run_stage("gate", tmp_path)
    assert gate.returncode == 0, gate.stderr
    assert details.read_bytes() == expected
    assert history.read_bytes() == past
    assert json.loads(expected)["sentences"][0] in gate.stdout

    images = np.random.default_rng(0).integers(0, 256, (360, 8, 8, 1), np.uint8)
    write_prepared(tmp_path / "prepared/test", images, [0] * 360)
    report = run_stage("report", tmp_path)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "report/index.html").is_file()

    (tmp_path / "certificates/student.tsv").write_text("idx\n")
    failed = run_stage("gate", tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "certificates/student.tsv: line 1 is not the header" in failed.stderr
    assert details.read_bytes() == expected
    shutil.rmtree(tmp_path / "certificates")
    assert "is missing" in run_stage("gate", tmp_path).stderr
