import hashlib
import json
from dataclasses import replace

import pytest
import torch
from model_folders import make_model
from safetensors.torch import load_file, save_file

from crt.errors import DamagedFileError, MissingFileError, UserError
from crt.models.checkpoint import (
    load_info,
    load_model,
    model_fingerprint,
    save_model,
)
from crt.models.cifar_resnet import CifarResNet
from crt.spec import ImageSpec

MEAN, STD = [0.1, 0.2, 1 / 3], [0.3, 0.2, 0.7]


def make(arch="cifar_resnet20", args=None, size=8, seed=0):
    spec = ImageSpec(("Katze", "Käfer", "ß"), size, channels=3)
    model, info = make_model(spec, seed, arch=arch, arch_args=args or {}, mean=MEAN, std=STD)
    model(torch.rand(4, *spec.shape))  # running statistics of their own
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
    save_model(tmp_path / "b", model, replace(info, spec=replace(info.spec, size=16)))
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
    _edit(folder, sigma="remove", color="red")
    with pytest.raises(UserError, match=r"lacks \['sigma'\] and has unknown \['color'\]"):
        load_model(folder)


def test_a_description_that_is_no_json_is_refused(folder):
    (folder / "model.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sigma": "x"}, 'sigma is "x", not a positive number'),
        ({"sigma": 0.0}, "sigma is 0.0, not a positive number"),
        ({"sigma": True}, "sigma is true, not a positive number"),
        ({"image_size": 100_000}, "image_size is 100000, not a whole number from 1 to 2048"),
        ({"channels": 1.5}, "channels is 1.5, not a whole number from 1 to 16"),
        ({"classes": []}, "classes is [], not a list of names"),
        ({"classes": ["a", 1, "b"]}, 'classes is ["a", 1, "b"], not a list of names'),
        ({"resize": "stretch"}, 'resize is "stretch", not one of none, crop, squash'),
        ({"mean": [None]}, "mean is [null], not a list of numbers"),
        ({"std": [float("inf")]}, "std is [Infinity], not a list of numbers"),
        ({"std": [10**400]}, "not a list of numbers"),
        ({"arch_args": "{}"}, 'arch_args is "{}", not a mapping'),
        ({"seed": "0"}, 'seed is "0", not a whole number or null'),
        ({"versions": {"torch": 2}}, 'versions is {"torch": 2}, not texts by name'),
        ({"source": []}, "source is [], not texts by name, or null"),
        ({"teacher_fingerprint": 1}, "teacher_fingerprint is 1, not text or null"),
    ],
)
def test_values_that_no_model_has_are_refused(folder, changes, said):
    _edit(folder, **changes)
    with pytest.raises(DamagedFileError, match=r"model\.json is damaged .*: get the model again$") as error:
        load_model(folder)
    assert said in str(error.value)


FORMAT_1 = {
    "arch": "cifar_resnet20",
    "arch_args": {},
    "channels": 1,
    "classes": ["zero", "one"],
    "data_fingerprint": "d",
    "format": 1,
    "image_size": 8,
    "init_fingerprint": None,
    "mean": [0.3],
    "method": "crt",
    "resize": "crop",
    "seed": 3,
    "sigma": 1,
    "source": None,
    "std": [0.4],
    "teacher_fingerprint": "t",
    "versions": {"crt": "0.1.0", "timm": "1.0.20", "torch": "2.6.0"},
}


@pytest.mark.parametrize("absent", [(), ("init_fingerprint",), ("init_fingerprint", "source")])
def test_a_model_folder_of_format_1_is_read(tmp_path, absent):
    """Spelled out here, so that a change of what is written cannot change what is read."""
    folder = tmp_path / "m"
    folder.mkdir()
    described = {key: value for key, value in FORMAT_1.items() if key not in absent}
    (folder / "model.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    network = CifarResNet(20, 2, 1)
    front = {"normalize.mean": torch.tensor([0.3]), "normalize.std": torch.tensor([0.4])}
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    save_file({**front, **weights}, folder / "model.safetensors")

    model, info = load_model(str(folder))
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network.eval()((images - 0.3) / 0.4))
    assert info.spec == ImageSpec(("zero", "one"), 8, 1, "crop")
    assert (info.sigma, info.seed, info.teacher_fingerprint, info.source) == (1, 3, "t", None)
    assert json.loads(info.to_json()) == FORMAT_1
    expected = hashlib.sha256(json.dumps(["cifar_resnet20", {}, 2, 1, 8]).encode())
    expected.update((folder / "model.safetensors").read_bytes())
    assert model_fingerprint(folder) == expected.hexdigest()


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
    with pytest.raises(MissingFileError, match=r"holds no model\.json: name a model folder") as error:
        load_model(tmp_path)
    assert error.value.path == tmp_path
