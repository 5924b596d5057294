import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from crt.errors import UserError
from crt.models.build import build_model
from crt.models.checkpoint import (
    FORMAT,
    ModelInfo,
    load_info,
    load_model,
    model_fingerprint,
    package_versions,
    save_model,
)

MEAN, STD = [0.1, 0.2, 1 / 3], [0.3, 0.2, 0.7]


def make(arch="cifar_resnet20", args=None, size=8, seed=0):
    torch.manual_seed(seed)
    args = args or {}
    model = build_model(arch, args, 3, 3, size, MEAN, STD)
    model(torch.rand(4, 3, size, size))  # running statistics of their own
    info = ModelInfo(
        format=FORMAT,
        arch=arch,
        arch_args=args,
        classes=["Katze", "Käfer", "ß"],
        image_size=size,
        channels=3,
        mean=MEAN,
        std=STD,
        resize="none",
        sigma=0.25,
        method="gaussian",
        data_fingerprint="d",
        teacher_fingerprint=None,
        seed=seed,
        versions=package_versions(),
    )
    return model, info


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "models" / "m"
    save_model(folder, *make())
    return folder


@pytest.mark.parametrize(
    ("arch", "args", "size"),
    [
        ("cifar_resnet20", {}, 8),
        ("convnext_atto", {"dims": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}, 32),
        ("vit_tiny_patch16_224", {"depth": 1}, 28),
    ],
)
def test_what_is_loaded_is_what_was_saved_bit_by_bit(tmp_path, arch, args, size):
    model, info = make(arch, args, size)
    save_model(tmp_path / "m", model, info)
    loaded, loaded_info = load_model(tmp_path / "m")
    assert loaded_info == info
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    images = torch.rand(2, 3, size, size)
    assert torch.equal(loaded(images), model.eval()(images))


def test_bytes_depend_on_the_weights_alone(folder, tmp_path):
    model, info = make()
    save_model(tmp_path / "other", model.to(memory_format=torch.channels_last), info)
    assert (tmp_path / "other/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_model_that_stands_there_is_replaced_and_nothing_stays_beside(folder):
    save_model(folder, *make(seed=1))
    assert load_info(folder).seed == 1
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    assert {path.name for path in folder.iterdir()} == {"model.json", "model.safetensors"}


def test_a_failed_write_leaves_the_old_model(folder, monkeypatch):
    import crt.models.checkpoint as module

    before = (folder / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_model(folder, *make(seed=1))
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_the_fingerprint_stands_for_weights_and_architecture(folder, tmp_path):
    model, info = make()
    fingerprint = model_fingerprint(folder)
    assert len(fingerprint) == 64
    save_model(tmp_path / "a", model, replace(info, data_fingerprint="other", seed=5))
    assert model_fingerprint(tmp_path / "a") == fingerprint
    save_model(tmp_path / "b", model, replace(info, image_size=16))
    assert model_fingerprint(tmp_path / "b") != fingerprint
    with torch.no_grad():
        model.network.fc.bias[0] += 1e-6
    save_model(tmp_path / "c", model, info)
    assert model_fingerprint(tmp_path / "c") != fingerprint


def _edit(folder, **changes):
    raw = json.loads((folder / "model.json").read_text())
    raw.update(changes)
    raw = {key: value for key, value in raw.items() if value != "remove"}
    (folder / "model.json").write_text(json.dumps(raw))


def test_another_format_is_refused(folder):
    _edit(folder, format=2)
    with pytest.raises(UserError, match=r"model\.json has format 2 but this version reads format 1"):
        load_model(folder)


def test_missing_and_unknown_keys_of_the_description_are_refused(folder):
    _edit(folder, sigma="remove", colour="red")
    with pytest.raises(UserError, match=r"lacks \['sigma'\] and has unknown \['colour'\]"):
        load_model(folder)


def test_a_description_that_is_no_json_is_refused(folder):
    (folder / "model.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sigma": "x"}, "sigma: "),
        ({"sigma": 0.0}, "sigma: "),
        ({"image_size": 100_000}, "image_size: "),
        ({"channels": 1.5}, "channels: "),
        ({"classes": []}, "classes: "),
        ({"mean": [None]}, r"mean\.0: "),
        ({"std": [float("inf")]}, r"std\.0: "),
        ({"arch_args": "{}"}, "arch_args: "),
    ],
)
def test_values_that_no_model_has_are_refused(folder, changes, said):
    _edit(folder, **changes)
    with pytest.raises(UserError, match=rf"model\.json is damaged \({said}.*get the model again") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_description_that_is_no_text_is_refused(folder):
    (folder / "model.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text"):
        load_model(folder)


def test_missing_surplus_and_misshapen_weights_are_told_in_at_most_ten_lines(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["extra"] = torch.zeros(1)
    tensors["network.fc.bias"] = torch.zeros(7)
    del tensors["network.conv1.weight"]
    save_file(tensors, file)
    with pytest.raises(UserError) as error:
        load_model(folder)
    message = str(error.value)
    assert "extra is surplus" in message
    assert "network.conv1.weight is missing" in message
    assert "network.fc.bias is torch.float32 [7] instead of torch.float32 [3]" in message
    save_file({"extra": torch.zeros(1)}, file)
    with pytest.raises(UserError) as error:
        load_model(folder)
    assert str(error.value).count("\n") == 10
    assert "more" in str(error.value).splitlines()[-1]


def test_damaged_or_missing_weights_are_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        load_model(folder)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        load_model(folder)


def test_no_model_at_all(tmp_path):
    with pytest.raises(UserError, match=r"holds no model\.json.*dvc repro"):
        load_model(tmp_path)
