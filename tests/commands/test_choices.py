"""What people choose: conf/choice.yaml is its one place, and params.yaml follows.

Nothing chosen is lost, or stays when it should not.
"""

import shutil
from pathlib import Path

import pytest
import yaml
from data_repo import assert_composed, choice, commit, run, state

from crt.commands.compose import compose
from crt.config import load
from crt.errors import UserError
from crt.project import Project
from crt.project.takeover import new_difference, take_over


def exp_run(root: Path, *overrides: str) -> None:
    """What `dvc exp run -S ...` does to params.yaml before it runs the stages: DVC's own function."""
    from dvc.utils.hydra import compose_and_dump

    compose_and_dump(str(root / "params.yaml"), str(root / "conf"), None, "config", "", list(overrides))


def params(root: Path) -> dict:
    return yaml.safe_load((root / "params.yaml").read_text())


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def chosen(root: Path) -> dict:
    """What was chosen beside the data set: options and values."""
    found = choice(root)
    options = {key: value for entry in found.pop("defaults") for key, value in entry.items()}
    del found["data"], options["override /preset"]
    return options | found


def test_a_choice_survives_every_later_experiment(clone):
    compose(Project(clone), ["student=convnext", "sigma=0.5"])
    assert chosen(clone) == {"override /student": "convnext", "sigma": 0.5}
    assert_composed(clone)
    exp_run(clone, "seed=1")
    found = load(clone / "params.yaml")
    assert (found.student.key, found.sigma, found.seed) == ("convnext", 0.5, 1)
    compose(Project(clone), ["certify.n=2000"])
    assert chosen(clone) == {
        "override /student": "convnext",
        "sigma": 0.5,
        "seed": 1,
        "certify": {"n": 2000},
    }
    assert_composed(clone)


@pytest.mark.parametrize(
    ("first", "then", "left"),
    [
        (["student.lr=0.3", "sigma=0.5"], "student=regnet", {"override /student": "regnet", "sigma": 0.5}),
        (["student.arch_args.layers=[1,1,1,2]"], "scale=small", {"override /scale": "small"}),
        (["student=timm", "student.arch=resnet26"], "student=vit", {"override /student": "vit"}),
        (["teacher.epochs=9", "teacher.drop=2025-02"], "teacher=gaussian", {"override /teacher": "gaussian"}),
        (["method.alpha=0.5"], "method=smoothadv_050", {"override /method": "smoothadv_050"}),
        (["certify.n=2000"], "split=validation", {"certify": {"n": 2000}, "override /split": "validation"}),
        (["bank=logits", "bank.views=4"], "bank=none", {"override /bank": "none"}),
    ],
)
def test_another_option_drops_what_was_chosen_for_the_one_before(clone, first, then, left):
    compose(Project(clone), first)
    compose(Project(clone), [then])
    assert chosen(clone) == left
    assert_composed(clone)


def test_an_option_and_a_value_for_it_in_one_command(clone):
    compose(
        Project(clone), ["student.lr=0.3", "student=regnet", "student.epochs=7", "student.arch_args.depth=5"]
    )
    assert chosen(clone)["student"] == {"lr": 0.3, "epochs": 7, "arch_args": {"depth": 5}}
    found = load(clone / "params.yaml").student
    assert (found.key, found.lr, found.epochs, found.arch_args["depth"]) == ("regnet", 0.3, 7, 5)


def test_what_follows_from_a_choice_is_not_frozen(clone):
    """The teacher's stages follow from its drop, the banks' from the drops."""
    compose(Project(clone), ["teacher.drop=2025-03", "bank=logits"])
    assert chosen(clone) == {"teacher": {"drop": "2025-03"}, "override /bank": "logits"}
    compose(Project(clone), ["teacher.drop=2025-02"])
    found = params(clone)
    assert found["teacher"]["trained"] == ["2025-02"]
    assert found["bank"]["drops"] == found["data"]["drops"]


def test_a_choice_is_taken_back(clone):
    before = params(clone)
    compose(Project(clone), ["sigma=0.5", "student=convnext", "student.lr=0.3"])
    compose(Project(clone), ["~sigma"])
    assert chosen(clone) == {"override /student": "convnext", "student": {"lr": 0.3}}
    with pytest.raises(
        UserError, match=r"seed is not chosen in conf/choice\.yaml; a parameter itself cannot be"
    ):
        compose(Project(clone), ["~seed"])
    compose(Project(clone), ["~student.lr", "~student"])
    assert params(clone) == before
    compose(Project(clone), ["sigma=0.5", "student=convnext"])
    compose(Project(clone), ["seed=3"], reset=True)
    assert chosen(clone) == {"seed": 3}
    assert choice(clone)["data"]["drops"] == before["data"]["drops"]


def test_edits_by_hand_are_composed_and_remarks_stay(clone):
    file = clone / "conf/choice.yaml"
    file.write_text(file.read_text() + "sigma: 0.5  # as the customer wants it\n")
    compose(Project(clone))
    assert load(clone / "params.yaml").sigma == 0.5
    assert "# as the customer wants it" in file.read_text()
    edit(clone / "conf/config.yaml", "seed: 0", "seed: 7")
    compose(Project(clone))
    assert load(clone / "params.yaml").seed == 7
    # An edit of what a command has written is newer than params.yaml, though nothing is committed.
    edit(file, "sigma: 0.5", "sigma: 1.0")
    compose(Project(clone))
    assert load(clone / "params.yaml").sigma == 1.0
    assert chosen(clone) == {"sigma": 1.0}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["student=nope"], "Could not find 'student/nope' Available options in 'student': convnext"),
        (["sigma=-1"], "sigma: "),
        (["sgima=1"], "sgima"),
        (["seed=1,2"], "sweep"),
        (["seed="], "seed"),
        (["student=timm", "student.arch=resnet26x"], "did you mean resnet26"),
        (["experiment=smoke"], r"\+experiment=smoke"),
        (["preset=cifar10"], "crt get-data cifar10"),
    ],
)
def test_what_does_not_fit_changes_nothing(clone, overrides, said):
    before = state(clone)
    with pytest.raises(UserError, match=said) as error:
        compose(Project(clone), overrides)
    assert "\n" not in str(error.value)
    assert state(clone) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sgima: 0.5\n", "sgima is not a known key"),
        ("defaults:\n- student: convnext\n", r"is not of the form `override /GROUP: OPTION`"),
        ("defaults:\n- override /studnet: convnext\n", "studnet"),
        ("a: [1,\n", "cannot be read"),
        ("- a\n", "is no mapping"),
        (None, "is missing: restore it with git"),
    ],
)
def test_a_broken_choice_is_refused_in_one_sentence(clone, text, said):
    file = clone / "conf/choice.yaml"
    if text is None:
        file.unlink()
    elif text.startswith(("defaults", "sgima")):
        file.write_text(text + "data:" + file.read_text().split("data:")[1])
    else:
        file.write_text(text)
    before = state(clone)
    with pytest.raises(UserError, match=said) as error:
        compose(Project(clone))
    assert "\n" not in str(error.value)
    assert state(clone) == before


SMOKE = {
    "teacher": {"epochs": 2},
    "student": {"epochs": 2, "init_epochs": 1},
    "certify": {"n0": 10, "n": 100, "max_images": 32},
}


@pytest.mark.parametrize(
    ("overrides", "taken"),
    [
        (["student=convnext", "sigma=0.5"], {"override /student": "convnext", "sigma": 0.5}),
        (["student=convnext", "student.lr=0.3"], {"override /student": "convnext", "student": {"lr": 0.3}}),
        (
            ["student=timm", "student.arch=resnet26"],
            {"override /student": "timm", "student": {"arch": "resnet26"}},
        ),
        (["+experiment=smoke"], SMOKE),
        (["bank=logits", "bank.views=4"], {"override /bank": "logits", "bank": {"views": 4}}),
        (["certify=adaptive"], {"override /certify": "adaptive"}),
        (["split=validation"], {"override /split": "validation"}),
        (
            ["method=smoothadv_050", "teacher=gaussian"],
            {"override /teacher": "gaussian", "override /method": "smoothadv_050"},
        ),
        (["teacher.drop=2025-03"], {"teacher": {"drop": "2025-03"}}),
        (["++student.arch_args.layers=[1,1,1,2]"], {"student": {"arch_args": {"layers": [1, 1, 1, 2]}}}),
        (["+gate.margins={0.5:0.01}"], {"gate": {"margins": {0.5: 0.01}}}),
    ],
)  # fmt: skip
def test_what_an_experiment_put_into_params_is_taken_over(clone, capsys, overrides, taken):
    exp_run(clone, *overrides)
    wanted = (clone / "params.yaml").read_text()
    take_over(Project(clone))
    assert (clone / "params.yaml").read_text() == wanted
    assert_composed(clone)
    assert chosen(clone) == taken
    assert "taken over from params.yaml into conf/choice.yaml: " in capsys.readouterr().out
    take_over(Project(clone))
    assert capsys.readouterr().out == ""


def test_an_edit_of_conf_is_not_undone_by_what_is_taken_over(clone, capsys):
    """The difference is that to the committed conf/: the edit is newer, and stays."""
    edit(clone / "conf/student/_sgd.yaml", "lr: 0.2", "lr: 0.05")
    take_over(Project(clone))
    assert "taken over" not in capsys.readouterr().out
    assert (load(clone / "params.yaml").student.lr, chosen(clone)) == (0.05, {})


@pytest.mark.parametrize("first", ["edit", "experiment"])
def test_an_experiment_beside_an_edit(clone, capsys, first):
    for step in ("edit", "experiment") if first == "edit" else ("experiment", "edit"):
        if step == "edit":
            edit(clone / "conf/student/_sgd.yaml", "lr: 0.2", "lr: 0.05")
        else:
            exp_run(clone, "sigma=0.5", "student=regnet")
    take_over(Project(clone))
    found = load(clone / "params.yaml")
    assert (found.sigma, found.student.key, found.student.lr) == (0.5, "regnet", 0.05)
    assert chosen(clone) == {"override /student": "regnet", "sigma": 0.5}
    out = capsys.readouterr().out
    assert "taken over from params.yaml into conf/choice.yaml: student=regnet, sigma=0.5\n" in out
    assert ("params.yaml follows conf/: student.lr 0.2 -> 0.05" in out) == (first == "experiment")


def test_an_experiment_that_was_committed(clone):
    exp_run(clone, "sigma=0.5")
    commit(clone)
    take_over(Project(clone))
    assert chosen(clone) == {"sigma": 0.5}


def test_an_experiment_with_what_was_chosen_before(clone):
    compose(Project(clone), ["student=convnext", "student.lr=0.3"])
    exp_run(clone, "seed=1", "student=regnet")  # Hydra keeps what was chosen for the other student
    wanted = params(clone)
    assert wanted["student"]["lr"] == 0.3
    take_over(Project(clone))
    assert params(clone) == wanted
    assert chosen(clone) == {"override /student": "regnet", "student": {"lr": 0.3}, "seed": 1}


def test_an_experiment_that_took_a_choice_back(clone):
    """`~` on DVC's command line takes a key away, which a choice can say where it is a chosen one."""
    compose(Project(clone), ["+student.arch_args.block_args={attn_layer: se}", "sigma=0.5"])
    commit(clone)
    exp_run(clone, "~student.arch_args.block_args", "seed=1")
    take_over(Project(clone))
    assert chosen(clone) == {"sigma": 0.5, "seed": 1}


def test_params_as_they_were_committed_say_nothing(clone):
    """`git checkout params.yaml` throws an experiment away, not what was chosen."""
    compose(Project(clone), ["student=convnext"])
    exp_run(clone, "sigma=0.5")
    run(clone, "git", "checkout", "-q", "params.yaml")
    take_over(Project(clone))
    assert chosen(clone) == {"override /student": "convnext"}


def test_without_a_commit_params_are_compared_with_conf_as_it_is(clone):
    shutil.rmtree(clone / ".git")
    exp_run(clone, "sigma=0.5")
    take_over(Project(clone))
    assert chosen(clone) == {"sigma": 0.5}


def test_both_changed_in_different_ways(clone):
    exp_run(clone, "sigma=0.5")
    file = clone / "conf/choice.yaml"
    file.write_text(file.read_text() + "sigma: 1.0\n")
    before = state(clone)
    with pytest.raises(
        UserError, match=r"sigma is 0\.5 in params\.yaml and 1\.0 in conf/choice\.yaml, and both are new"
    ):
        compose(Project(clone), ["seed=1"])
    assert state(clone) == before
    (clone / "params.yaml").unlink()
    compose(Project(clone))
    assert load(clone / "params.yaml").sigma == 1.0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "sigma: 0.25\n",
            "",
            r"params\.yaml lacks sigma, which no choice in conf/ can say: delete params\.yaml to",
        ),
        ("sigma: 0.25\n", "sgima: 0.25\n", r"params\.yaml (lacks|has) .*sigma"),
        ("sigma: 0.25\n", "sigma: -1\n", "sigma: "),
        ("sigma: 0.25\n", "sigma: [\n", "is not YAML"),
    ],
)
def test_what_no_choice_can_say_is_refused(clone, old, new, said):
    edit(clone / "params.yaml", old, new)
    before = state(clone)
    with pytest.raises(UserError, match=said) as error:
        compose(Project(clone), ["seed=1"])
    assert "\n" not in str(error.value)
    assert state(clone) == before


def test_after_a_merge_conf_decides(clone):
    """Git merged params.yaml line by line, or a driver value by value: it is no experiment's."""
    run(clone, "git", "checkout", "-qb", "other")
    edit(clone / "conf/student/_sgd.yaml", "lr: 0.2", "lr: 0.05")
    commit(clone)
    run(clone, "git", "checkout", "-q", "-")
    compose(Project(clone), ["student=regnet"])
    commit(clone)
    run(
        clone, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "merge", "-q", "-m", "m", "other"
    )
    take_over(Project(clone))
    assert load(clone / "params.yaml").student.lr == 0.05
    assert chosen(clone) == {"override /student": "regnet"}


def test_a_stage_names_the_difference_once(clone):
    assert new_difference(Project(clone)) is None
    exp_run(clone, "sigma=0.5", "student=convnext")
    assert new_difference(Project(clone)) == "student=convnext, sigma=0.5"
    assert new_difference(Project(clone)) is None
    take_over(Project(clone))
    assert new_difference(Project(clone)) is None
    exp_run(clone, "sigma=1.0")
    assert new_difference(Project(clone)) == "sigma=1.0"
    (clone / "conf/choice.yaml").write_text("a: [1,\n")
    assert "cannot be read" in new_difference(Project(clone))
    assert new_difference(Project(clone)) is None
