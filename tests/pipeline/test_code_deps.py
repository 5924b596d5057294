"""Each stage lists exactly the code that it imports."""

from code_deps import ROOT, WITHOUT_EFFECT, code_of, written


def test_dvc_yaml_lists_the_real_imports():
    text = (ROOT / "dvc.yaml").read_text()
    assert written(text) == text, "the lists of code in dvc.yaml are stale: run `make code-deps`"


def test_a_change_of_the_report_does_not_touch_training():
    teacher = code_of(ROOT / "stages/teacher.py")
    assert "crt/training/loop.py" in teacher
    assert not [
        name for name in teacher if name.startswith(("crt/report", "crt/evaluation", "crt/certification"))
    ]
    report = code_of(ROOT / "stages/report.py")
    assert not [name for name in report if name.startswith(("crt/training", "crt/methods"))]


def test_what_is_left_out_exists():
    for name in WITHOUT_EFFECT:
        assert (ROOT / name).is_file()
