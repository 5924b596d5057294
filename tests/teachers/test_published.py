"""Checkpoints of others: recognized, converted to the same function, refused where they do not fit."""

import re

import pytest
import timm
import torch
import torchvision
from published_files import CIFAR10, BufferedFront, Front, cifar, lively, save_cohen, save_crt, save_macer
from safetensors.torch import save_file
from torch import nn

from crt.errors import UserError
from crt.models.build import BaseClassifier, Normalize, build_model
from crt.spec import ImageSpec
from crt.teachers.published import build, in_order, recognize
from crt.teachers.safe_load import load_checkpoint

IDENTITY = ((0.0,) * 3, (1.0,) * 3)
CENTER = (CIFAR10[0], (1.0,) * 3)
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def built(found, source, channels, size, mean=(0.0,), std=(1.0,)):
    network = build(found, source, ImageSpec.numbered(found.num_classes, size, channels))
    return BaseClassifier(Normalize(mean, std), network)


def logits(path, front, images=IMAGES, **arch):
    found = recognize(load_checkpoint(path), path.name, **arch)
    model = built(found, path.name, images.shape[1], images.shape[2], *front)
    with torch.no_grad():
        return found, model(images)


def same(source: nn.Module, found: torch.Tensor, images=IMAGES) -> bool:
    with torch.no_grad():
        return torch.allclose(source(images), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("front", [CIFAR10, CENTER, IDENTITY])
def test_cohens_layout_with_each_front_layer(tmp_path, front):
    source = nn.Sequential(Front(*front), cifar())
    found, got = logits(save_cohen(tmp_path / "checkpoint.pth.tar", source), front)
    assert (found.arch, found.num_classes, found.epoch) == ("cifar_resnet20", 10, 90)
    assert found.front is None  # the published code's layer leaves no trace
    assert same(source, got)
    other = CENTER if front is CIFAR10 else CIFAR10
    # A wrong one loads, and is wrong.
    assert not same(source, logits(tmp_path / "checkpoint.pth.tar", other)[1])


def test_container_of_before_torch_1_6(tmp_path):
    source = nn.Sequential(Front(*CIFAR10), cifar())
    path = save_cohen(tmp_path / "old.pth.tar", source, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert same(source, logits(path, CIFAR10)[1])


@pytest.mark.parametrize(
    ("name", "classes", "depth"),
    [
        ("cifar_resnet110", 10, 110),
        ("cifar100_resnet110", 100, 110),
        ("imagenet32_resnet110", 1000, 110),
        ("cifar_resnet20", 10, 20),
    ],
)
def test_names_of_the_smoothing_repositories(tmp_path, name, classes, depth):
    found, got = logits(
        save_cohen(tmp_path / "a", nn.Sequential(Front(*CIFAR10), cifar(depth, classes)), arch=name), CIFAR10
    )
    assert found.arch == f"cifar_resnet{depth}"
    assert got.shape == (4, classes)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_depth_is_read_from_the_tensors(tmp_path, depth):
    network = cifar(depth)
    assert recognize({"state_dict": network.state_dict()}, "x").arch == f"cifar_resnet{depth}"


def test_macers_layout(tmp_path):
    network = cifar(110)
    found, got = logits(save_macer(tmp_path / "440.pth", network), IDENTITY)
    assert (found.arch, found.epoch) == ("cifar_resnet110", 440)
    assert "'net'" in found.layout
    assert same(network, got)


@pytest.mark.parametrize("wrap", [lambda n: n, nn.DataParallel])
def test_crt_authors_layout_on_one_and_several_gpus(tmp_path, wrap):
    network = cifar()
    source = nn.Sequential(Front(*CIFAR10), wrap(network))
    found, got = logits(save_crt(tmp_path / "checkpoint.pth.tar", source), CIFAR10)
    assert found.arch == "cifar_resnet20"
    assert same(nn.Sequential(Front(*CIFAR10), network), got)


def test_crt_authors_regnet_is_timms(tmp_path):
    network = lively(timm.create_model("regnetx_002", num_classes=10)).eval()

    def their_name(name: str) -> str:
        for pattern, new in (
            (r"^stem\.conv\.", "conv1."),
            (r"^stem\.bn\.", "bn1."),
            (r"^head\.fc\.", "fc."),
            (r"^s(\d)\.b(\d+)\.downsample\.conv\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.downsample.0."),
            (r"^s(\d)\.b(\d+)\.downsample\.bn\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.downsample.1."),
            (r"^s(\d)\.b(\d+)\.conv(\d)\.conv\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.conv{m[3]}."),
            (r"^s(\d)\.b(\d+)\.conv(\d)\.bn\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.bn{m[3]}."),
        ):
            name = re.sub(pattern, new, name)
        return name

    state = {f"1.module.{their_name(name)}": tensor for name, tensor in network.state_dict().items()}
    assert any("layer4" in name for name in state)
    assert not any(".s1." in name for name in state)
    torch.save({"epoch": 89, "state_dict": state}, tmp_path / "a")
    images = torch.rand(2, 3, 64, 64)
    _, got = logits(tmp_path / "a", IDENTITY, images, arch="regnetx_002")
    assert same(network, got, images)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvision_resnets_behind_the_imagenet_prefix(tmp_path, name):
    network = lively(getattr(torchvision.models, name)(num_classes=7))
    front = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    source = nn.Sequential(Front(*front), nn.DataParallel(network))
    path = save_cohen(tmp_path / "a", source, arch=name)
    images = torch.rand(2, 3, 64, 64)
    found, got = logits(path, front, images)
    assert found.arch == name  # although the strides stay torchvision's at 64 pixels
    assert same(nn.Sequential(Front(*front), network), got, images)


def test_a_front_layer_with_buffers_is_read_from_the_file(tmp_path):
    source = nn.Sequential(BufferedFront(*CIFAR10), cifar())
    path = save_cohen(tmp_path / "a", source)
    found = recognize(load_checkpoint(path), "a")
    assert found.front is not None
    assert found.front[0] == pytest.approx(CIFAR10[0])
    assert found.front[1] == pytest.approx(CIFAR10[1])
    assert same(source, logits(path, found.front)[1])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_a_timm_state_dict_needs_its_name(tmp_path, name):
    network = timm.create_model(name, num_classes=5).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    images = torch.rand(1, 3, 224, 224)
    with pytest.raises(UserError, match=r"teacher\.arch"):
        logits(tmp_path / "model.safetensors", IDENTITY, images)
    found, got = logits(tmp_path / "model.safetensors", IDENTITY, images, arch=name)
    assert found.num_classes == 5
    assert same(network, got, images)


def test_timms_training_script_writes_the_name_beside_the_weights(tmp_path):
    from argparse import Namespace

    network = timm.create_model("mobilenetv3_small_050", num_classes=5).eval()
    content = {
        "epoch": 3,
        "arch": "mobilenetv3_small_050",
        "state_dict": network.state_dict(),
        "args": Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "a")
    images = torch.rand(2, 3, 64, 64)
    assert same(network, logits(tmp_path / "a", IDENTITY, images)[1], images)


def test_our_own_weights_without_their_description(tmp_path):
    source = build_model("cifar_resnet20", ImageSpec.numbered(10, 32, 3), None, *CIFAR10).eval()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    found = recognize(load_checkpoint(tmp_path / "model.safetensors"), "a")
    assert found.front is not None
    assert same(source, logits(tmp_path / "model.safetensors", found.front)[1])


def test_very_old_files_have_no_batch_counters(tmp_path):
    network = cifar()
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": state}, tmp_path / "a")
    assert same(network, logits(tmp_path / "a", IDENTITY)[1])


def test_half_precision_weights_become_single(tmp_path):
    network = cifar()
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}, tmp_path / "a"
    )
    assert same(network.half().float(), logits(tmp_path / "a", IDENTITY)[1])


def test_gray_images_and_class_count():
    network = cifar(20, classes=4, channels=1)
    found = recognize(network.state_dict(), "x")
    assert found.num_classes == 4
    model = built(found, "x", 1, 28, (0.0,), (1.0,))
    assert same(network, model(IMAGES[:, :1, :28, :28]), IMAGES[:, :1, :28, :28])
    with pytest.raises(UserError, match=r"conv1.weight is torch.float32 \[16, 1, 3, 3\]"):
        built(found, "x", 3, 32, *IDENTITY)


def test_outputs_are_put_into_the_wanted_order():
    network = cifar(classes=3)
    found = in_order(recognize(network.state_dict(), "x"), ["b", "c", "a"], ["a", "b", "c"])
    model = built(found, "x", 3, 32, *IDENTITY)
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), network(IMAGES)[:, [2, 0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weights": 1}, "no state dict (its entries are weights)"),
        ({"state_dict": {}}, "no state dict"),
        ({"state_dict": {"a": torch.zeros(3)}}, "no image classifier"),
        (
            {"state_dict": cifar().state_dict(), "arch": "cifar_resnet110"},
            "cifar_resnet20's: set teacher.arch",
        ),
        ({"state_dict": cifar().state_dict(), "arch": "lenet"}, "lenet"),
    ],
)
def test_what_is_no_known_checkpoint_is_said(content, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        recognize(content, "teacher.pth")
    assert "teacher.pth" in str(error.value)


def test_a_depth_that_is_not_offered():
    state = {k: v for k, v in cifar(32).state_dict().items() if not k.startswith("layer3.4")}
    with pytest.raises(UserError, match=r"5\+5\+4 blocks"):
        recognize(state, "x")


def test_the_named_architecture_must_be_the_one_in_the_file():
    with pytest.raises(UserError, match=r"teacher\.arch is resnet18"):
        recognize(cifar().state_dict(), "x", arch="resnet18")


def test_near_names_of_an_unknown_architecture_are_listed():
    with pytest.raises(UserError, match=r"did you mean.*convnext_atto"):
        recognize(
            {"a.weight": torch.zeros(1, 1, 1, 1), "b": torch.zeros(1), "c": torch.zeros(1, 1)},
            "x",
            "convnextatto",
        )


def test_a_misfit_is_listed_in_ten_lines():
    state = timm.create_model("resnet18", num_classes=10).state_dict()
    wrong = {name.replace("layer1", "layer9"): tensor for name, tensor in state.items()}
    found = recognize(wrong, "x", arch="resnet18")
    with pytest.raises(UserError) as error:
        built(found, "x", 3, 64, *IDENTITY)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("x does not fit resnet18")
    assert len(lines) == 1 + 10
    assert any("is missing" in line for line in lines)
    assert re.search(r"and \d+ more", lines[-1])

    shape = {**state, "fc.weight": torch.zeros(10, 3)}
    with pytest.raises(
        UserError, match=r"fc.weight is torch.float32 \[10, 3\] instead of torch.float32 \[10, 512\]"
    ):
        built(recognize(shape, "x", arch="resnet18"), "x", 3, 64, *IDENTITY)
