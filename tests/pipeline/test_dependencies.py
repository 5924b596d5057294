"""What a change of code re-runs: dvc.yaml's dependencies beside the real imports."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

# Every stage imports them, and they change no value that a stage computes: they check params.yaml, name
# devices and processes, write files whole, and end in one sentence. A change of theirs re-runs nothing.
NEUTRAL = {
    "crt/__init__.py", "crt/config.py", "crt/errors.py", "crt/files.py", "crt/devices.py", "crt/processes.py",
    "crt/memory.py", "stages/common.py",
}  # fmt: skip
# Training imports it only where a bank is in use, and then the stage lists it as ${bank.code}.
ON_REQUEST = {("crt/training/fit.py", "crt/bank.py")}


def file_of(module: str) -> Path | None:
    """The project's file for a dotted module name, or None for anything else."""
    base = ROOT / module.replace(".", "/") if module.split(".")[0] == "crt" else ROOT / "stages" / module
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def imports(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            modules.add(node.module or "")
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return modules


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def code_of(stage: dict) -> set[str]:
    """The stage's script and all that it imports in this project, but for what is neutral or empty.

    A stage that depends on a method by its name may import any of them.
    """
    seen: set[Path] = set()
    waiting = [script_of(stage)]
    if any(dep.startswith("crt/methods/${") for dep in stage["deps"]):
        waiting += (ROOT / "crt/methods").glob("*.py")
    while waiting:
        file = waiting.pop()
        if file in seen or name_of(file) in NEUTRAL:
            continue
        seen.add(file)
        for module in imports(file):
            parts = module.split(".")
            found = [file_of(".".join(parts[:i])) for i in range(1, len(parts) + 1)]
            waiting += [
                path
                for path in found
                if path is not None and (name_of(file), name_of(path)) not in ON_REQUEST
            ]
    return {name_of(path) for path in seen if path.stat().st_size > 0}


def covers(dep: str, file: str) -> bool:
    """Whether a dependency is the file, a folder around it, or a pattern of names that has it."""
    pattern = re.sub(r"\\\$\\\{[^}]*\\\}", "[^/]+", re.escape(dep))
    return re.fullmatch(f"{pattern}(/.*)?", file) is not None


def stages() -> dict[str, dict]:
    """Each stage's definition by name, without its foreach."""
    found = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in found.items()}


def script_of(stage: dict) -> Path:
    return ROOT / re.search(r"stages/\w+\.py", stage["cmd"])[0]


@pytest.mark.parametrize("name", stages())
def test_a_stage_depends_on_all_code_that_it_imports(name):
    stage = stages()[name]
    listed = [dep for dep in stage["deps"] if dep.startswith(("crt", "stages"))]
    missing = [file for file in code_of(stage) if not any(covers(dep, file) for dep in listed)]
    assert not missing, f"dvc.yaml: {name} imports {missing} and does not list it"


@pytest.mark.parametrize("name", stages())
def test_a_stage_depends_on_no_code_that_it_does_not_import(name):
    stage, code = stages()[name], code_of(stages()[name])
    for dep in stage["deps"]:
        if dep.startswith(("crt", "stages")):
            assert any(covers(dep, file) for file in code), f"{name} lists {dep}"


def test_the_methods_of_teacher_and_student_are_dependencies():
    assert "crt/methods/${method.name}.py" in stages()["student"]["deps"]
    assert "crt/methods/${teacher.method.name}.py" in stages()["teacher"]["deps"]
    assert "${bank.code}" in stages()["student"]["deps"]


def test_dvc_yaml_is_read_from_top_to_bottom():
    lines = (ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 240
    assert max(len([d for d in stage["deps"] if d.startswith("crt")]) for stage in stages().values()) <= 9
    seen: set[str] = set()
    for name, stage in stages().items():
        for dep in stage["deps"]:
            maker = next(
                (n for n, other in stages().items() if dep in map(_path, other.get("outs", []))), name
            )
            assert maker in seen | {name}, f"{name} comes before {maker}, which makes {dep}"
        seen.add(name)


def _path(out: str | dict) -> str:
    return out if isinstance(out, str) else next(iter(out))
