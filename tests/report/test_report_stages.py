import json
import shutil
import subprocess
import sys
from pathlib import Path

from results_folder import DROPS, make_results

ROOT = Path(__file__).parents[2]


def run_stage(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "stages" / f"{name}.py"
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False
    )


def test_gate_and_report_stages(tmp_path):
    make_results(tmp_path)
    text = (ROOT / "params.yaml").read_text()
    assert all(drop in text for drop in DROPS)
    (tmp_path / "params.yaml").write_text(text)
    expected = (tmp_path / "results/gate.json").read_bytes()
    (tmp_path / "results/gate.json").unlink()

    gate = run_stage("gate", tmp_path)
    assert gate.returncode == 0, gate.stderr
    assert (tmp_path / "results/gate.json").read_bytes() == expected
    assert json.loads(expected)["sentences"][0] in gate.stdout

    report = run_stage("report", tmp_path)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "report/index.html").is_file()

    (tmp_path / "certificates/student.tsv").write_text("idx\n")
    failed = run_stage("gate", tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "certificates/student.tsv: line 1 is not the header" in failed.stderr
    assert (tmp_path / "results/gate.json").read_bytes() == expected
    shutil.rmtree(tmp_path / "certificates")
    assert "is missing" in run_stage("gate", tmp_path).stderr
