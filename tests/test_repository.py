"""The files around the code: line ends, continuous integration, citation."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ("git", *arguments), cwd=folder, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def tracked() -> list[Path]:
    """The files that a commit of the working tree would hold."""
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return [Path(name) for name in listed if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("setting", ["core.autocrlf=true", "core.eol=crlf"])
def test_a_clone_has_the_same_bytes_whatever_git_does_with_line_ends(setting, tmp_path):
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    for name in tracked():
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / name).write_bytes((ROOT / name).read_bytes())
    git(origin, "init", "-q")
    git(origin, "config", "core.autocrlf", "false")
    git(origin, "add", "--all", "--force")
    git(origin, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")
    git(tmp_path, "clone", "-q", "-c", setting, str(origin), str(clone))
    changed = [str(name) for name in tracked() if (clone / name).read_bytes() != (ROOT / name).read_bytes()]
    assert changed == []
    assert git(clone, "status", "--porcelain") == ""


def calls(workflow: dict[str, Any], job: str) -> list[str]:
    return [step["run"] for step in workflow["jobs"][job]["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_github_runs_what_ci_run_runs_with_pinned_actions(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, job in workflow["jobs"].items():
        assert all(command.split()[0] == ".ci/run" for command in calls(workflow, name))
        for step in job["steps"]:
            assert "run" in step or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
        assert job["timeout-minutes"] > 0
    assert workflow["permissions"] == {"contents": "read"}


def test_gitlab_runs_the_same_as_github():
    jobs = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8"))
    gitlab = {name: jobs[name]["script"] for name in ("test", "nightly")}
    github = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    assert gitlab == {"test": calls(github["ci"], "test"), "nightly": calls(github["nightly"], "test-all")}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"check", "test", "test-all"} <= set(targets)


def test_the_hooks_before_a_commit_are_those_of_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0][
        "hooks"
    ]
    recipe = re.search(
        r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert recipe is not None
    assert [hook["name"] for hook in hooks] == [
        line.strip().removesuffix(" .") for line in recipe[1].splitlines()
    ]


def test_citation_and_changelog_name_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert (
        f"## {version} - {citation['date-released']}"
        in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    )
    assert [author["family-names"] for author in citation["preferred-citation"]["authors"]] == [
        "Vaishnavi",
        "Eykholt",
        "Rahmati",
    ]


def test_functions_fit_on_one_screen():
    files = [path for path in tracked() if path.suffix == ".py" and path.parts[0] in ("crt", "stages")]
    functions = [
        (path, node)
        for path in files
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) > 500
    assert [f"{path}: {node.name}" for path, node in functions if node.end_lineno - node.lineno >= 60] == []
