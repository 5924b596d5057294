import pytest

from crt.datasets.roles import role_of, split_names
from crt.errors import UserError


@pytest.mark.parametrize(
    ("role", "names"),
    [
        (
            "train",
            "train Train TRAIN training training_set TrainSet train-images seg_train trainval train2017",
        ),
        ("validation", "val valid validation Validation VALID val2017 validation_set dev eval valid-data"),
        ("test", "test Test testing test_set TestImages seg_test t-test tst"),
        (None, "trainer vally contest attest retrieval cat images trainers Validator 2025-01"),
    ],
)
def test_roles_in_any_spelling(role, names):
    assert {name: role_of(name) for name in names.split()} == dict.fromkeys(names.split(), role)


def test_files_of_a_published_set():
    assert role_of("train-00000-of-00005-2d4f6a.parquet") == "train"
    assert role_of("0000.parquet") is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train", "test"], {"train": "train", "test": "test"}),
        (["Train", "valid", "images.old"], {"train": "Train", "validation": "valid"}),
        (["seg_train", "seg_test", "seg_pred"], {"train": "seg_train", "test": "seg_test"}),
        (["cat", "dog"], {}),
        (["bus station", "train station", "test tube"], {}),
        (["train"], {"train": "train"}),
    ],
)
def test_the_parts_of_a_set_among_folders(names, expected):
    assert split_names(names) == expected


def test_two_folders_for_one_part():
    with pytest.raises(UserError, match="Training and train are the same part of a data set: leave one"):
        split_names(["train", "Training", "test"])
