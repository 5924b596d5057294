import os
import re
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import yaml
from data_repo import commit, delivery, listed_drops, record, run, state
from PIL import Image

import crt.commands.ingest as command
import crt.project.repository as repository
from crt.commands.compose import compose
from crt.commands.ingest import drop_data, ingest
from crt.config import load
from crt.drops.layout import read_classes
from crt.drops.prepare import Checks, check_drop, prepare_drop, raw_images
from crt.errors import UserError
from crt.project import Project
from crt.spec import ImageSpec

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # DVC's own

SAMPLE = ["2025-01", "2025-02", "2025-03"]


@pytest.fixture
def no_dvc(monkeypatch):
    """Leaves DVC's part out of a test about copying or settings."""
    monkeypatch.setattr(Project, "dvc", lambda *_, **__: "")
    monkeypatch.setattr(command, "leave_sample_remote", lambda _: None)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_becomes_a_drop(repo, tmp_path, capsys):
    before = state(repo)
    source = delivery(tmp_path / "in")
    shutil.copy(source / "3" / "0.png", source / "3" / "again.png")
    (source / "README.md").write_text("from the field")
    ingest(Project(repo), source, "2025-04")
    out = capsys.readouterr().out
    assert "the drop 2025-04: 7 images (3 4, 7 3)" in out
    assert "copies of others in the drop: 1 (14.3%)\n" in out
    assert "other files, not used: 1 (.md 1): README.md\n" in out
    assert "dvc repro" in out
    assert tree(repo / "data" / "train" / "2025-04") == tree(source)
    assert listed_drops(repo) == [*SAMPLE, "2025-04"]
    assert run(repo, "dvc", "status", "-q", "data.dvc") == ""
    after = state(repo)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {name for name in changed if not name.startswith("data/")} == {
        "data.dvc",
        "conf/choice.yaml",
        "params.yaml",
    }
    # One line more each, no other change.
    for name in ("conf/choice.yaml", "params.yaml"):
        assert after[name].replace(b"  - 2025-04\n", b"") == before[name]


def test_choices_in_params_are_kept(repo, no_dvc, tmp_path):
    compose(Project(repo), ["student=convnext", "+experiment=smoke"])
    before = yaml.safe_load((repo / "params.yaml").read_text())
    ingest(Project(repo), delivery(tmp_path / "in"), "2025-04")
    before["data"]["drops"].append("2025-04")
    assert yaml.safe_load((repo / "params.yaml").read_text()) == before


@pytest.mark.real_dvc
def test_with_nothing_pulled_only_the_test_set_is_fetched_into_the_workspace(clone, tmp_path):
    ingest(Project(clone), delivery(tmp_path / "in"), "2025-04")
    assert sorted(path.name for path in (clone / "data" / "train").iterdir()) == ["2025-04"]
    assert (clone / "data" / "test" / "digits.npz").exists()
    assert listed_drops(clone) == [*SAMPLE, "2025-04"]
    # What a user adds does not belong to the sample's remote, which is in git: his own gets the whole.
    assert "remote" not in record(clone)
    sample = tree(clone / "sample")
    run(clone, "dvc", "remote", "add", "-d", "team", str(tmp_path / "team"))
    run(clone, "dvc", "push", "-q", "data.dvc")
    assert tree(clone / "sample") == sample
    shutil.rmtree(clone / "data")
    shutil.rmtree(clone / ".dvc" / "cache")
    run(clone, "dvc", "pull", "-q", "data.dvc")
    assert sorted(path.name for path in (clone / "data" / "train").iterdir()) == [*SAMPLE, "2025-04"]


def make_zip(source, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in source.rglob("*.png"):
            archive.write(file, f"delivery/{file.relative_to(source)}")
    return path


def make_tar(source, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(source, ".")
    return path


def make_npz(source, path):
    files = sorted(source.rglob("*.png"))
    np.savez(
        path,
        images=[np.asarray(Image.open(file)) for file in files],
        labels=[int(file.parts[-2]) for file in files],
    )
    return path


@pytest.mark.parametrize(("make", "name"), [(make_zip, "a.zip"), (make_tar, "a.tgz"), (make_npz, "a.npz")])
def test_archives(repo, no_dvc, tmp_path, capsys, make, name):
    source = delivery(tmp_path / "in")
    ingest(Project(repo), make(source, tmp_path / name), "2025-04")
    assert "6 images (3 3, 7 3)" in capsys.readouterr().out
    target = repo / "data" / "train" / "2025-04"
    assert tree(target) == ({"a.npz": (tmp_path / name).read_bytes()} if name == "a.npz" else tree(source))


def test_unlabeled_images(repo, no_dvc, tmp_path, capsys):
    source = delivery(tmp_path / "in")
    ingest(Project(repo), source / "3", "unlabelled")
    out = capsys.readouterr().out
    assert "3 images (no labels)" in out
    assert "unlabeled: 3 (100.0%)\n" in out


def truncated(source):
    path = source / "3" / "0.png"
    path.write_bytes(path.read_bytes()[:60])


def text(source):
    (source / "3" / "0.png").write_text("I am no image")


def unknown_class(source):
    (source / "7").rename(source / "seven")


def empty(source):
    shutil.rmtree(source / "3")
    shutil.rmtree(source / "7")


def other_size(source):
    delivery(source, size=9)


def known_image(source):
    with np.load(source.parent / "repo" / "data" / "test" / "digits.npz") as arrays:
        Image.fromarray(arrays["images"][5]).save(source / "7" / "known.bmp")


def dangling(source):
    (source / "3" / "away.png").symlink_to(source / "nowhere.png")


def labels_out_of_range(source):
    empty(source)
    np.savez(source / "a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 10])


def pickled(source):
    empty(source)
    np.savez(source / "a.npz", images=np.zeros((1, 8, 8), np.uint8), labels=np.array([{}], object))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, r"in has 1 unreadable image\(s\): 3/0.png \("),
        (text, r"1 unreadable image\(s\): 3/0.png \(not an image\)"),
        (unknown_class, r"in has class folders that classes.txt does not know \(seven\)"),
        (empty, "in holds no images"),
        (other_size, r"6 image\(s\) of the wrong size or mode: 3/0.png \(9x9 pixels instead of 8x8\)"),
        (
            known_image,
            r"1 image\(s\) that also stand in the test set: 7/known.bmp \(test image digits.npz#5\)",
        ),
        (dangling, r"in/3/away.png is a link to a file that is not there: fix or remove it"),
        (labels_out_of_range, r"a.npz: 1 of 2 labels are out of range, first 10 at index 1"),
        (pickled, r"a.npz: `labels` holds pickled Python objects"),
    ],
)
def test_bad_deliveries_change_nothing(repo, tmp_path, damage, message):
    source = delivery(tmp_path / "in")
    damage(source)
    before = state(repo)
    with pytest.raises(UserError, match=message) as error:
        ingest(Project(repo), source, "2025-04")
    assert ".partial" not in str(error.value)
    assert "\n" not in str(error.value)
    assert state(repo) == before


def test_archive_with_a_path_that_leads_out(repo, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(delivery(tmp_path / "in") / "3" / "0.png", "../../../evil.png")
    before = state(repo)
    with pytest.raises(UserError, match="leads out"):
        ingest(Project(repo), tmp_path / "a.zip", "2025-04")
    assert state(repo) == before
    assert not list(tmp_path.rglob("evil.png"))


@pytest.mark.parametrize("drop", ["", "../x", "a/b", "-x", ".x", "test", "a b", "x.partial", "x" * 101])
def test_names_that_cannot_be(repo, tmp_path, drop):
    with pytest.raises(UserError, match="cannot name a drop"):
        ingest(Project(repo), delivery(tmp_path / "in"), drop)


def test_wrong_requests(repo, tmp_path):
    source = delivery(tmp_path / "in")
    before = state(repo)
    with pytest.raises(UserError, match="'2025-01' exists already"):
        ingest(Project(repo), source, "2025-01")
    with pytest.raises(UserError, match="nowhere is missing"):
        ingest(Project(repo), tmp_path / "nowhere", "2025-04")
    with pytest.raises(UserError, match=r"is no folder, .npz, parquet file, zip or tar"):
        ingest(Project(repo), source / "3" / "0.png", "2025-04")
    assert state(repo) == before


def test_other_files_under_that_name_are_not_overwritten(repo, no_dvc, tmp_path):
    target = delivery(repo / "data" / "train" / "2025-04", first_seed=500)
    before = state(repo)
    with pytest.raises(UserError, match="2025-04 exists, with other contents"):
        ingest(Project(repo), delivery(tmp_path / "in"), "2025-04")
    assert state(repo) == before
    # Put there by hand, it can be taken in from where it is.
    ingest(Project(repo), target, "2025-04")
    assert listed_drops(repo) == [*SAMPLE, "2025-04"]
    assert tree(target) == {
        name.split("2025-04/")[1]: data for name, data in before.items() if "2025-04/" in name
    }


class Kill(BaseException):
    """Ends a command in the middle."""


def kill(*_, **__):
    raise Kill


def kill_between_files(monkeypatch):
    """Ends `Project.choose` after its first file, conf/choice.yaml."""
    write = repository.write_text

    def once(path, content):
        if path.name == "params.yaml":
            raise Kill
        write(path, content)

    monkeypatch.setattr(repository, "write_text", once)


STEPS = ["leave_sample_remote", "dvc", "choose", "params.yaml"]


def kill_at(step, monkeypatch):
    if step == "params.yaml":
        kill_between_files(monkeypatch)
    elif step == "leave_sample_remote":
        monkeypatch.setattr(command, step, kill)
    else:
        monkeypatch.setattr(Project, step, kill)


@pytest.mark.slow
def test_after_kills_the_same_command_ends_what_was_begun(repo, tmp_path, monkeypatch):
    source = delivery(tmp_path / "in")
    aside = repo / "data" / "train" / "2025-04.partial"
    for step in STEPS:  # each run comes one step further
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            with pytest.raises(Kill):
                ingest(Project(repo), source, "2025-04")
        aside.mkdir()  # as a kill during the copying leaves it
        (aside / "half.png").write_text("x")
    ingest(Project(repo), source, "2025-04")
    assert listed_drops(repo) == [*SAMPLE, "2025-04"]
    assert tree(repo / "data" / "train" / "2025-04") == tree(source)
    assert not aside.exists()
    assert run(repo, "dvc", "status", "-q", "data.dvc") == ""
    # A kill after the last step, or a doubt: the same again changes nothing, another delivery is refused.
    before = state(repo)
    ingest(Project(repo), source, "2025-04")
    assert state(repo) == before
    with pytest.raises(UserError, match="exists already"):
        ingest(Project(repo), delivery(tmp_path / "other", first_seed=900), "2025-04")
    assert state(repo) == before


def prepared_remains(repo, drop):
    (repo / "prepared" / "train" / drop).mkdir(parents=True)
    (repo / "prepared" / "train" / drop / "meta.json").write_text("{}")
    (repo / "results" / "prepare").mkdir(parents=True)
    (repo / "results" / "prepare" / f"{drop}.json").write_text("{}")


def assert_dropped(repo, drop, left):
    assert listed_drops(repo) == left
    assert not (repo / "data" / "train" / drop).exists()
    assert not (repo / "prepared" / "train" / drop).exists()
    assert not (repo / "results" / "prepare" / f"{drop}.json").exists()
    recorded = yaml.safe_load(run(repo, "dvc", "list", ".", "data/train", "--dvc-only", "--json"))
    assert [item["path"] for item in recorded] == left


@pytest.mark.real_dvc
def test_drop_data_removes_every_trace(repo):
    prepared_remains(repo, "2025-02")
    drop_data(Project(repo), "2025-02")
    assert_dropped(repo, "2025-02", ["2025-01", "2025-03"])
    assert run(repo, "dvc", "status", "-q", "data.dvc") == ""


def test_the_prepared_test_set_is_read_and_not_decoded_again(repo, tmp_path, monkeypatch):
    """While DVC says that it is that of the present data, code and parameters."""
    prepare_drop(repo / "data/test", repo / "prepared/test", spec=ImageSpec.numbered(10, 8, 1))
    source = delivery(tmp_path / "in")
    known_image(source)
    with np.load(repo / "data/test/digits.npz") as raw:
        moved = {name: np.roll(raw[name], 1, axis=0) for name in ("images", "labels")}
    np.savez(repo / "data/test/digits.npz", **moved)
    real, modified = Project.dvc, '{"prepare_test": [{"changed deps": {"data/test": "modified"}}]}'
    for status, number in (("{}", 5), (modified, 6)):

        def dvc(project, *arguments, _status=status, **how):
            return _status if arguments[0] == "status" else real(project, *arguments, **how)

        monkeypatch.setattr(Project, "dvc", dvc)
        said = rf"also stand in the test set: 7/known.bmp \(test image digits.npz#{number}\)"
        with pytest.raises(UserError, match=said):
            ingest(Project(repo), source, "2025-04")


def test_a_single_file_is_named_as_it_was_given(repo, no_dvc, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 10])
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/a\.npz: 1 of 2 labels"):
        ingest(Project(repo), tmp_path / "a.npz", "2025-04")


@pytest.mark.real_dvc
def test_drop_data_without_the_list_of_files_names_the_remedy(clone):
    shutil.rmtree(clone / "sample")  # the remote, as in a clone of data that nobody pushed
    with pytest.raises(UserError, match=r"`dvc pull data\.dvc`, then run again"):
        drop_data(Project(clone), "2025-02")


def test_drop_data_with_nothing_pulled(clone):
    drop_data(Project(clone), "2025-02")
    assert_dropped(clone, "2025-02", ["2025-01", "2025-03"])


@pytest.mark.slow
def test_ingest_and_drop_data_undo_each_other(repo, tmp_path):
    before = state(repo)
    ingest(Project(repo), delivery(tmp_path / "in"), "2025-04")
    drop_data(Project(repo), "2025-04")
    after = state(repo)
    former, latter = (yaml.safe_load(found.pop("data.dvc"))["outs"][0] for found in (before, after))
    assert former["md5"] == latter["md5"]
    assert after == before


@pytest.mark.slow
def test_drop_data_refuses_the_teachers_drop_unless_another_is_chosen(repo):
    before = state(repo)
    with pytest.raises(UserError, match=r"the teacher is trained on '2025-01': choose another drop"):
        drop_data(Project(repo), "2025-01")
    assert state(repo) == before
    compose(Project(repo), ["teacher.drop=2025-03"])
    drop_data(Project(repo), "2025-01")
    assert_dropped(repo, "2025-01", ["2025-02", "2025-03"])
    assert load(repo / "params.yaml").teacher.drop == "2025-03"


@pytest.mark.slow
def test_drop_data_refuses_what_cannot_be_brought_back(repo):
    (repo / "data" / "train" / "2025-02" / "new.png").write_text("precious")
    before = state(repo)
    with pytest.raises(UserError, match=r"holds what DVC does not have \(data/train/2025-02/new.png\)"):
        drop_data(Project(repo), "2025-02")
    assert state(repo) == before
    drop_data(Project(repo), "2025-03")  # another drop is no concern of it
    assert listed_drops(repo) == ["2025-01", "2025-02"]


def test_drop_data_wrong_requests(repo):
    with pytest.raises(UserError, match=r"there is no drop 'x': data\.drops lists 2025-01"):
        drop_data(Project(repo), "x")
    compose(Project(repo), ["data.drops=[2025-01]"])
    before = state(repo)
    with pytest.raises(UserError, match="'2025-01' is the only drop"):
        drop_data(Project(repo), "2025-01")
    assert state(repo) == before


@pytest.mark.slow
def test_drop_data_after_kills(repo, monkeypatch):
    prepared_remains(repo, "2025-02")
    for step in STEPS:
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            with pytest.raises(Kill):
                drop_data(Project(repo), "2025-02")
    drop_data(Project(repo), "2025-02")
    assert_dropped(repo, "2025-02", ["2025-01", "2025-03"])


def test_links_of_dvcs_cache_work(repo, tmp_path):
    """With cache.type symlink every file of data/ is a link into the cache."""
    run(repo, "dvc", "config", "cache.type", "symlink")
    commit(repo)
    run(repo, "dvc", "checkout", "--relink", "-q", "data.dvc")
    assert os.path.islink(repo / "data" / "test" / "digits.npz")
    ingest(Project(repo), delivery(tmp_path / "in"), "2025-04")
    assert listed_drops(repo) == [*SAMPLE, "2025-04"]


@pytest.mark.slow
def test_a_delivery_is_compared_with_the_drops_before_it(repo, tmp_path, capsys):
    """Drift of classes, pixels and the release's confidence, and copies of what is there already."""
    from model_folders import write_model

    prepare_drop(
        repo / "data/train/2025-01",
        repo / "prepared/train/2025-01",
        spec=ImageSpec.numbered(10, 8, 1),
    )
    write_model(repo / "models/student", mean=[0.0], std=[1.0])
    with np.load(next((repo / "data/train/2025-01").glob("*.npz"))) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    few = (labels == 3).nonzero()[0][:30]
    dark = images[few] // 2
    np.savez(
        tmp_path / "dark.npz",
        images=np.concatenate([dark, images[:5]]),
        labels=np.append(labels[few], labels[:5]),
    )
    ingest(Project(repo), tmp_path / "dark.npz", "2025-04")
    out = capsys.readouterr().out
    assert "also in earlier drops: 5 (14.3%)" in out
    assert "drift against the earlier drops (2025-01):" in out
    lines = {line.split("  ")[2]: line for line in out.splitlines() if "->" in line}
    for quantity in ("share of class 3", "brightness", "contrast", "confidence of the last student"):
        assert quantity in lines, out
    assert "unlikely by chance" in lines["share of class 3"]
    assert "unlikely by chance" in lines["brightness"]
    # Said again, it is not compared with itself.
    prepare_drop(
        repo / "data/train/2025-04",
        repo / "prepared/train/2025-04",
        spec=ImageSpec.numbered(10, 8, 1),
    )
    ingest(Project(repo), tmp_path / "dark.npz", "2025-04")
    out = capsys.readouterr().out
    assert "also in earlier drops: 5 (14.3%)" in out
    assert "drift against the earlier drops (2025-01):" in out


def test_an_image_that_an_earlier_drop_labels_otherwise_is_refused(repo, no_dvc, tmp_path):
    prepare_drop(
        repo / "data/train/2025-01", repo / "prepared/train/2025-01", spec=ImageSpec.numbered(10, 8, 1)
    )
    with np.load(next((repo / "data/train/2025-01").glob("*.npz"))) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    wrong = np.append(labels[:4], (labels[4] + 1) % 10)
    np.savez(tmp_path / "again.npz", images=images[:5], labels=wrong)
    with pytest.raises(
        UserError,
        match=rf"1 image\(s\) that an earlier drop labels otherwise: again.npz#4 is labeled {wrong[4]}, "
        rf"and the same image as digits.npz#4 of the drop 2025-01 {labels[4]}; remove them, or the earlier "
        "drop",
    ):
        ingest(Project(repo), tmp_path / "again.npz", "2025-04")
    assert listed_drops(repo) == SAMPLE
    assert not (repo / "data/train/2025-04").exists()


def test_what_was_done_and_what_is_not_used_is_told(repo, no_dvc, tmp_path, capsys):
    source = delivery(tmp_path / "in")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (8, 8), dtype=np.uint8)).save(
        source / "3" / "phone.png", exif=exif
    )
    for number in range(12):
        (source / "7" / f"{number:02}.xml").write_text("x")
    ingest(Project(repo), source, "2025-04")
    out = capsys.readouterr().out
    assert "the drop 2025-04: 7 images (3 4, 7 3)" in out
    assert "  turned as the EXIF tag says: 1\n" in out
    assert "  other files, not used: 12 (.xml 12): 7/00.xml, " in out
    assert "7/09.xml and 2 more\n" in out


def as_class_folders(repo):
    """The same project with a test set of class folders, as `crt get-data folder:` makes it."""
    (repo / "data/test/digits.npz").unlink()
    for label in range(10):
        for index in range(2):
            path = repo / "data/test" / str(label) / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = np.random.default_rng(900 + 10 * label + index).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(path)


def add_class(folder, count):
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(500 + index).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.mark.parametrize("test_set", ["npz", "folders"])
def test_a_new_class_in_a_delivery(repo, no_dvc, tmp_path, capsys, test_set):
    if test_set == "folders":
        as_class_folders(repo)
    source = delivery(tmp_path / "in")
    add_class(source / "A", 10)
    before = state(repo)
    with pytest.raises(
        UserError, match=r"does not know \(A\).*`crt ingest --add-classes` makes them classes"
    ):
        ingest(Project(repo), source, "2025-04")
    assert state(repo) == before
    ingest(Project(repo), source, "2025-04", add_classes=True)
    out = capsys.readouterr().out
    assert "the drop 2025-04: 14 images (3 3, 7 3, A 8)" in out
    assert "new classes: A; to the test set: A 2" in out
    assert "the teacher's drop 2025-01 has no image of them: choose a drop of all classes" in out
    config = load(repo / "params.yaml")
    assert config.data.num_classes == 11
    classes = read_classes(repo / "data", 11)
    assert classes[10] == "A"
    spec = ImageSpec(tuple(classes), 8, 1)
    tested = check_drop(repo / "data/test", spec=spec, checks=Checks(need_labels=True))
    assert tested["classes"]["A"] == 2
    assert tested["images"] == (22 if test_set == "folders" else 362)
    known = raw_images(repo / "data/test", spec=spec)
    assert check_drop(repo / "data/train/2025-04", spec=spec, checks=Checks(tested=known))["images"] == 14
    # The next delivery has it as any other class.
    ingest(Project(repo), tmp_path / "in" / "3", "unlabeled")
    assert listed_drops(repo) == [*SAMPLE, "2025-04", "unlabeled"]


def test_new_classes_after_kills(repo, tmp_path, monkeypatch):
    as_class_folders(repo)
    run(repo, "dvc", "add", "-q", "data")
    source = delivery(tmp_path / "in")
    add_class(source / "A", 5)

    def kill(*_, **__):
        raise Kill

    for where, step in ((command, "add_to_data"), (Project, "dvc"), (Project, "choose")):
        with monkeypatch.context() as patch:
            patch.setattr(where, step, kill)
            with pytest.raises(Kill):
                ingest(Project(repo), source, "2025-04", add_classes=True)
    ingest(Project(repo), source, "2025-04", add_classes=True)
    assert load(repo / "params.yaml").data.num_classes == 11
    assert [path.name for path in (repo / "data/test/A").iterdir()] != []
    assert len(list((repo / "data").rglob("A/*.png"))) == 5
    assert run(repo, "dvc", "status", "-q", "data.dvc") == ""


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["3/0.png"], "has no class folder that classes.txt lacks: leave --add-classes out"),
        (["A/0.png"], "has one image of the class A: "),
        (["A/0.png", "A/1.png", "a/2.png", "a/3.png"], None),  # two classes that differ in case
    ],
)
def test_deliveries_without_a_new_class(repo, no_dvc, tmp_path, names, message):
    for number, name in enumerate(names):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    before = state(repo)
    if message is None:
        ingest(Project(repo), tmp_path / "in", "2025-04", add_classes=True)
        assert read_classes(repo / "data", 12)[10:] == ["A", "a"]
        return
    with pytest.raises(UserError, match=message):
        ingest(Project(repo), tmp_path / "in", "2025-04", add_classes=True)
    assert state(repo) == before
