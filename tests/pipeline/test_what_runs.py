"""A retraining pays only for what changed: a statement is edited, and DVC is asked which stages would run."""

from pathlib import Path

import pytest
from dvc.repo import Repo

pytestmark = pytest.mark.slow

PREPARE = {"prepare_test", "prepare@2025-01", "prepare@2025-02", "prepare@2025-03"}
TRAIN = {"teacher@2025-01", "student"}
CERTIFY = {"certify@teacher", "certify@student"}
METRICS = {"metrics@teacher", "metrics@student"}

# file: the stages that its edit re-runs directly. What follows them runs where their outputs change.
EDITS = {
    # Metrics, curves, confidence intervals, gate, report: never a training, never a certification.
    "crt/evaluation/metrics.py": METRICS | {"gate"},
    "crt/evaluation/gate.py": METRICS | {"gate"},
    "stages/metrics.py": METRICS,
    "stages/gate.py": {"gate"},
    "crt/report/content.py": {"report"},
    # Downloading, reading others' checkpoints, DVC and GTO: no stage of a project that trains its teacher and
    # pins nothing.
    "crt/references/fetch.py": set(),
    "crt/references/fetch_dvc.py": set(),
    "crt/teachers/safe_load.py": set(),
    "stages/fetch_teacher.py": set(),
    # What every stage imports.
    "crt/__init__.py": set(),
    "crt/config.py": set(),
    "crt/errors.py": set(),
    "crt/files.py": set(),
    "crt/devices.py": set(),
    "crt/processes.py": set(),
    "crt/memory.py": set(),
    "stages/common.py": set(),
    # Methods: those in use, and what methods share.
    "crt/methods/macer.py": set(),
    "crt/methods/consistency.py": {"teacher@2025-01"},
    "crt/methods/crt.py": {"student"},
    "crt/methods/shared/attacks.py": TRAIN,
    # The bank, where none is in use.
    "crt/bank.py": set(),
    "stages/bank.py": set(),
    # Batches, augmentation, loop.
    "crt/training/batches.py": TRAIN,
    "crt/training/augment.py": TRAIN,
    "crt/training/loop.py": TRAIN,
    # Votes, bounds, noise; folding (the teacher is folded in training too) and precision of the certified
    # function.
    "crt/certification/votes.py": CERTIFY,
    "crt/certification/bounds.py": CERTIFY,
    "crt/certification/noise.py": CERTIFY,
    "crt/inference/int8.py": CERTIFY,
    "crt/inference/fold.py": TRAIN | CERTIFY,
    # Raw files and networks.
    "crt/drops/images.py": PREPARE,
    "crt/models/small_images.py": TRAIN | CERTIFY,
    # Commands, tests, benchmarks, public sets.
    "crt/cli.py": set(),
    "crt/commands/show.py": set(),
    "crt/datasets/sources.py": set(),
    "benchmarks/training.py": set(),
    "tests/conftest.py": set(),
}
NEW = {
    "crt/methods/novel.py": "NEEDS_LABELS = True\nTEACHER = None\n",
    "conf/student/novel.yaml": "defaults: [_sgd, _self_]\nkey: novel\n",
    "conf/network/tiny/novel.yaml": "arch: resnet18\nargs_for: null\narch_args: {}\nepochs: 1\n",
    "crt/training/NOTES.md": "Not code.\n",
    "README.md": "Another text.\n",
    "docs/new.md": "Another text.\n",
}


def changed(root: Path) -> set[str]:
    with Repo(str(root)) as repo:
        return {name.rpartition(":")[2] for name in repo.status()}


@pytest.fixture(scope="module")
def edited(reproduced, tmp_path_factory):
    return reproduced[0].copy(tmp_path_factory.mktemp("edited") / "repo").root


@pytest.mark.parametrize("file", EDITS)
def test_an_edited_statement_reruns(edited, file):
    path = edited / file
    before = path.read_bytes()
    path.write_bytes(before + b"\n_EDITED = True\n")
    try:
        assert changed(edited) == EDITS[file]
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("file", NEW)
def test_a_new_file_reruns_nothing(edited, file):
    path = edited / file
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NEW[file])
    try:
        assert changed(edited) == set()
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_metrics_come_from_certificates_alone(edited, reproduced):
    """What follows an edit of the metrics, really run."""
    path = edited / "crt/evaluation/metrics.py"
    before = path.read_bytes()
    path.write_bytes(before + b"\n_EDITED = True\n")
    try:
        ran = type(reproduced[0])(edited).stages_run("dvc", "repro")
        assert set(ran) == METRICS | {"gate"}, (
            "their outputs are the same bytes, so the report is not written again"
        )
    finally:
        path.write_bytes(before)
