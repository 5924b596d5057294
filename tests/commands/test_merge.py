"""The three-way merge of what two people change who ingest at once."""

from pathlib import Path

import pytest
import yaml
from data_repo import commit, delivery, listed_drops, record, run
from hypothesis import given
from hypothesis import strategies as st

from crt.commands.ingest import ingest
from crt.commands.merge import ConflictError, _merged_lock, merge_file, merge_values
from crt.project import Project

NAMES = st.lists(st.sampled_from("abcdef"), unique=True, max_size=6)
VALUES = st.recursive(
    st.integers(0, 3) | st.text("xy", max_size=1) | NAMES,
    lambda inner: st.dictionaries(st.sampled_from("pqr"), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, VALUES)
def test_a_side_that_changed_nothing_has_no_say(base, other):
    assert merge_values(base, base, other) == other
    assert merge_values(base, other, base) == other
    assert merge_values(base, other, other) == other


@given(NAMES, NAMES, NAMES)
def test_lists_are_merged_as_sets(base, ours, theirs):
    merged = merge_values(base, ours, theirs)
    assert len(set(merged)) == len(merged)
    added = (set(ours) | set(theirs)) - set(base)
    kept = set(base) & set(ours) & set(theirs)
    assert set(merged) == added | kept
    assert set(merge_values(base, theirs, ours)) == set(merged)


def test_mappings_are_merged_key_by_key_and_a_conflict_is_named():
    base = {"a": {"b": 1, "c": 2}, "gone": 0}
    assert merge_values(base, {"a": {"b": 9, "c": 2}, "gone": 0}, {"a": {"b": 1, "c": 8, "d": 3}}) == {
        "a": {"b": 9, "c": 8, "d": 3}
    }
    with pytest.raises(ConflictError, match=r"both sides changed a\.b$"):
        merge_values(base, {"a": {"b": 5, "c": 2}}, {"a": {"b": 6, "c": 2}})
    with pytest.raises(ConflictError, match="gone"):
        merge_values(base, {"a": base["a"]}, base | {"gone": 1})


def test_of_the_lock_only_what_both_agree_on_stays():
    base = {"schema": "2.0", "stages": {"teacher": {"cmd": "t"}, "student": {"md5": 1}, "old": {"md5": 0}}}
    ours = {"schema": "2.0", "stages": {"teacher": {"cmd": "t"}, "student": {"md5": 2}, "prepare@a": {}}}
    theirs = {"schema": "2.0", "stages": {**base["stages"], "student": {"md5": 3}, "prepare@b": {}}}
    merged = _merged_lock(base, ours, theirs)
    assert merged == {
        "schema": "2.0",
        "stages": {"teacher": {"cmd": "t"}, "prepare@a": {}, "prepare@b": {}},
    }


def three(folder: Path, name: str, base: str, ours: str, theirs: str) -> bool:
    for side, text in (("base", base), ("ours", ours), ("theirs", theirs)):
        (folder / side).write_text(text)
    return merge_file(folder / "base", folder / "ours", folder / "theirs", name)


def test_choices_of_both_sides_are_kept(tmp_path):
    base = "defaults:\n- override /preset: digits\ndata:\n  drops:\n  - a\n"
    ours = base.replace("  - a\n", "  - a\n  - b\n") + "sigma: 0.5\n"
    theirs = base.replace("data:", "- override /student: vit\ndata:").replace("  - a\n", "  - a\n  - c\n")
    assert three(tmp_path, "conf/choice.yaml", base, ours, theirs)
    assert yaml.safe_load((tmp_path / "ours").read_text()) == {
        "defaults": [{"override /preset": "digits"}, {"override /student": "vit"}],
        "data": {"drops": ["a", "b", "c"]},
        "sigma": 0.5,
    }


def test_two_students_are_left_to_people(tmp_path, capsys):
    sides = [f"defaults:\n- override /student: {name}\n" for name in ("resnet", "vit", "swin")]
    assert not three(tmp_path, "conf/choice.yaml", *sides)
    assert "both sides changed the options.student" in capsys.readouterr().out
    assert "<<<<<<< ours" in (tmp_path / "ours").read_text()


def test_parameters_that_both_changed_are_left_to_people(tmp_path, capsys):
    text = (Path(__file__).resolve().parents[2] / "params.yaml").read_text()
    sides = [text.replace("sigma: 0.25", f"sigma: {value}") for value in (0.25, 0.5, 1.0)]
    assert not three(tmp_path, "params.yaml", *sides)
    assert "both sides changed sigma" in capsys.readouterr().out
    left = (tmp_path / "ours").read_text()
    assert "<<<<<<< ours" in left
    assert "sigma: 0.5" in left
    assert "sigma: 1.0" in left


def test_parameters_that_do_not_fit_together_are_left_to_people(tmp_path, capsys):
    text = (Path(__file__).resolve().parents[2] / "params.yaml").read_text()
    # Each fits alone: one lowers n, the other alpha; together every image would abstain.
    ours = text.replace("n0: 100\n  'n': 1000\n", "n0: 100\n  'n': 10\n")
    theirs = text.replace("alpha: 0.001\n", "alpha: 1.0e-09\n")
    assert text not in (ours, theirs)
    assert not three(tmp_path, "params.yaml", text, ours, theirs)
    assert "every image would abstain" in capsys.readouterr().out


@pytest.mark.slow
def test_two_who_ingest_at_once(repo, tmp_path):
    """With real git and DVC: both drops are listed, recorded and come out of the cache."""
    run(repo, "git", "checkout", "-qb", "theirs")
    ingest(Project(repo), delivery(tmp_path / "one"), "2025-04")
    commit(repo)
    run(repo, "git", "checkout", "-qb", "ours", "theirs~1")
    run(repo, "dvc", "checkout", "-q", "data.dvc")
    ingest(Project(repo), delivery(tmp_path / "two", first_seed=500), "2025-05")
    commit(repo)
    sides = {"base": "theirs~1", "ours": "ours", "theirs": "theirs"}
    for name in ("data.dvc", "conf/choice.yaml", "params.yaml"):
        for side, revision in sides.items():
            (tmp_path / side).write_text(run(repo, "git", "show", f"{revision}:{name}"))
        assert merge_file(*(tmp_path / side for side in sides), name, root=repo)
        (repo / name).write_text((tmp_path / "ours").read_text())
    drops = ["2025-01", "2025-02", "2025-03", "2025-05", "2025-04"]
    assert listed_drops(repo) == drops
    run(repo, "dvc", "checkout", "-q", "data.dvc")
    assert sorted(path.name for path in (repo / "data/train").iterdir()) == sorted(drops)
    assert run(repo, "dvc", "status", "-q", "data.dvc") == ""
    files = [path for path in (repo / "data").rglob("*") if path.is_file()]
    assert record(repo)["nfiles"] == len(files)
    assert record(repo)["size"] == sum(path.stat().st_size for path in files)
