"""The code that a stage depends on: the static, transitive imports of its script within this project.

As a command, writes the lists in dvc.yaml (`make code-deps`).
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# They check params.yaml and change no value of it, so a change of theirs must not retrain anything.
WITHOUT_EFFECT = {"crt/config.py", "crt/errors.py"}


def _file_of(module: str) -> Path | None:
    """The project's file for a dotted module name, or None for anything else."""
    if module.split(".")[0] == "crt":
        base = ROOT / module.replace(".", "/")
    else:  # stages/ is on the path of its own scripts
        base = ROOT / "stages" / module.replace(".", "/")
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def _imported_modules(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            modules.add(node.module)
            # `from crt.data import store` imports a module, not an attribute.
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return modules


def code_of(script: Path) -> list[str]:
    """Paths, relative to the root, of the script and of all that it imports here, and of templates beside them."""
    seen: set[Path] = set()
    waiting = [script.resolve()]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for module in _imported_modules(file):
            parts = module.split(".")
            for i in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b too
                found = _file_of(".".join(parts[:i]))
                if found is not None:
                    waiting.append(found)
    templates = {t for file in seen for t in file.parent.glob("*.j2") if file.parent.name == "report"}
    names = {path.relative_to(ROOT).as_posix() for path in seen | templates}
    # An empty __init__.py has no effect either.
    return sorted(n for n in names - WITHOUT_EFFECT if (ROOT / n).stat().st_size > 0)


def written(text: str) -> str:
    """dvc.yaml's text with every code list brought up to date."""
    lines, script, skipping = [], None, False
    for line in text.splitlines():
        if match := re.match(r"\s+cmd: python (stages/\w+\.py)", line):
            script = match[1]
        if line.strip() == "# end of code":
            skipping = False
        if not skipping:
            lines.append(line)
        if line.strip() == "# code":
            assert script is not None
            indent = line[: line.index("#")]
            lines += [f"{indent}- {name}" for name in code_of(ROOT / script)]
            skipping = True
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    file = ROOT / "dvc.yaml"
    file.write_text(written(file.read_text(encoding="utf-8")), encoding="utf-8")
