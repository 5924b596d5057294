"""The README and docs/: commands, links and the Python example are real."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from crt.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code(path: Path) -> list[str]:
    """The lines of a page's code: inline spans and fenced blocks, comments cut off."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", text(path), re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text(path), flags=re.MULTILINE | re.DOTALL)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"(^|\s)#.*", "", line) for line in [*lines, *spans]]


def calls(path: Path, program: str) -> list[list[str]]:
    """The words after `program`, of each call of it in the page's code."""
    found = []
    for line in code(path):
        for part in re.split(r"&&|\|\||;|\|", line):
            words = part.strip().removeprefix("$ ").split()
            if words[:1] == [program] and len(words) > 1:
                found.append(words[1:])
    return found


@page
def test_each_crt_command_and_its_options_exist(path):
    group = typer.main.get_command(app)
    for name, *words in calls(path, "crt"):
        if not name.isidentifier() and "-" not in name:
            continue  # a placeholder
        assert name in group.commands, f"crt {name}"
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        assert used <= known, f"crt {name} {' '.join(words)}"


@page
def test_each_make_target_exists(path):
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.MULTILINE))
    used = {words[0] for words in calls(path, "make")}
    assert used <= targets


@page
def test_each_choice_exists(path):
    """`-S student=convnext` and the like name an option of conf/."""
    for line in code(path):
        for group, option in re.findall(r"(?:-S |compose )\+?([a-z@.]+)=([a-z_0-9]+)(?=[\s'\"]|$)", line):
            folder = ROOT / "conf" / group.split("@")[0]
            if folder.is_dir():
                assert (folder / f"{option}.yaml").is_file(), line


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text(path), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_each_link_leads_somewhere(path):
    prose = re.sub(r"^```.*?^```", "", text(path), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def metric_keys() -> list[str]:
    """The keys of the metrics files of this repository's results."""
    stages = yaml.safe_load(text(ROOT / "dvc.yaml"))["stages"].values()
    names = [name for stage in stages for name in metrics(stage.get("do", stage))]
    files = [file for name in names for file in ROOT.glob(re.sub(r"\$\{\w+\}", "*", name))]
    return [key for file in files for key in json.loads(text(file))]


def test_the_readme_explains_each_metric():
    section = text(ROOT / "README.md").split("## Metrics\n")[1].split("\n## ")[0]
    explained = set(re.findall(r"`([a-z_0-9.]+)`", section))
    assert {"acr", "smoothed_acc", "verdict"} <= set(metric_keys())
    assert set(metric_keys()) - explained == set()


def test_metrics_are_few_with_short_names_each_in_one_file():
    keys = [*metric_keys(), "baseline_acr"]  # that of a role which this repository does not pin
    assert len(keys) == len(set(keys)) <= 10
    assert max(map(len, keys)) <= 12


def metrics(stage: dict[str, Any]) -> list[str]:
    """The names of a stage's metrics files."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in stage.get("metrics", [])]


def test_the_index_of_docs_lists_each_page():
    linked = set(re.findall(r"\]\(([^)\s]+)\)", text(ROOT / "docs" / "README.md")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_the_readmes_python_example_prints_what_it_says():
    example, printed = re.search(
        r"```python\n(.*?)```\n\nIt prints[^\n]*:\n\n```\n(.*?)```", text(ROOT / "README.md"), re.DOTALL
    ).groups()
    done = subprocess.run(
        (sys.executable, "-c", example), capture_output=True, text=True, timeout=300, check=True, cwd="/"
    )
    number = r"\d+\.\d+"
    assert re.sub(number, "<radius>", done.stdout) == re.sub(number, "<radius>", printed)
    for ours, said in zip(re.findall(number, done.stdout), re.findall(number, printed), strict=True):
        assert float(ours) == pytest.approx(float(said), abs=0.1)
