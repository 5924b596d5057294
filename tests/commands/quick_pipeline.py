"""This project's dvc.yaml with stages that only write their outputs: DVC's part of a run, in seconds."""

import json
from pathlib import Path

import yaml

SCRIPT = '''\
"""Write the outputs named on the command line."""
import json, sys
from pathlib import Path

METRICS = %s
seed = int(next(line for line in open("params.yaml") if line.startswith("seed: ")).split()[1])

for name in sys.argv[1:]:
    path = Path(name)
    if not path.suffix:  # a folder
        path.mkdir(parents=True, exist_ok=True)
        if "models" in name:
            (path / "model.safetensors").write_text(str(seed))
        path = path / ("index.parquet" if "prepared" in name else "model.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    varies = 'student' in name
    found = {key: value + seed / 1e5 if varies else value for key, value in METRICS.get(name, {}).items()}
    found["seed"] = seed if "model" in name or "certificates" in name else None
    facts = {key: value for key, value in found.items() if value is not None}
    path.write_text(json.dumps(facts) + "\\n" if path.suffix == ".json" else f"a,b\\n1,{seed}\\n")
'''
METRICS = {
    "results/certify/student.json": {
        "acr": 0.42366, "smoothed_acc": 0.96111, "cert_0.25": 0.79167, "cert_0.5": 0.48056, "cert_0.75": 0.2,
        "cert_1.0": 0.1,
    },
    "results/certify/teacher.json": {"teacher_acr": 0.42737},
    "results/certify/baseline.json": {"baseline_acr": 0.42},
    "results/gate.json": {"verdict": "no baseline"},
}  # fmt: skip


def make_quick(root: Path) -> None:
    """Replace the stages' commands, and their dependencies on code."""
    (root / "write.py").write_text(SCRIPT % json.dumps(METRICS))
    pipeline = yaml.safe_load((root / "dvc.yaml").read_text())
    for stage in pipeline["stages"].values():
        inner = stage.get("do", stage)
        outs = [
            out if isinstance(out, str) else next(iter(out))
            for kind in ("outs", "metrics", "plots")
            for out in inner.get(kind, [])
        ]
        inner["cmd"] = f"python write.py {' '.join(outs)}"
        inner["deps"] = [
            dep for dep in inner["deps"] if not dep.startswith(("crt/", "stages/", "${bank.code"))
        ]
        inner["deps"] += ["write.py"]
    (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False, width=1000))
