import sys
from subprocess import run

import pytest
import torch

from crt.errors import UserError
from crt.models.build import build_model
from crt.models.cifar_resnet import CifarResNet, depth_of
from crt.spec import ImageSpec


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "num_classes", "count", "entries"),
    [(20, 10, 272_474, 128), (110, 10, 1_730_714, 668), (110, 100, 1_736_564, 668)],
)
def test_parameters_and_entries_are_those_of_published_checkpoints(depth, num_classes, count, entries):
    model = CifarResNet(depth, num_classes)
    assert parameters(model) == count
    assert len(model.state_dict()) == entries


def test_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in CifarResNet(20).state_dict().items()}
    assert list(shapes)[:7] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
        "layer1.0.conv1.weight",
    ]
    assert shapes["conv1.weight"] == (16, 3, 3, 3)
    assert shapes["layer2.0.conv1.weight"] == (32, 16, 3, 3)
    assert shapes["layer2.0.downsample.0.weight"] == (32, 16, 1, 1)
    assert shapes["layer3.0.downsample.1.running_var"] == (64,)
    assert shapes["layer3.2.conv2.weight"] == (64, 64, 3, 3)
    assert shapes["fc.weight"] == (10, 64)
    assert shapes["fc.bias"] == (10,)
    assert [name for name in shapes if "downsample.0" in name] == [
        "layer2.0.downsample.0.weight",
        "layer3.0.downsample.0.weight",
    ]


def test_maps_halve_twice_and_operations_are_40_8_million():
    from torch.utils.flop_counter import FlopCounterMode

    model = CifarResNet(20).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    # 40.8 million multiplications are counted with the 1x1 shortcuts and the linear layer.
    assert counter.get_total_flops() / 2 == pytest.approx(40.8e6, rel=2e-3)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (65, 3)])
def test_other_sizes_and_channels(size, channels):
    model = build_model("cifar_resnet20", ImageSpec.numbered(7, size, channels))
    assert model(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_initial_weights_are_those_of_he_et_al():
    torch.manual_seed(0)
    weight = CifarResNet(110).layer3[5].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_depths_by_name():
    assert depth_of("cifar_resnet44") == 44
    assert depth_of("resnet18") is None
    with pytest.raises(UserError, match="cifar_resnet20, cifar_resnet32"):
        depth_of("cifar_resnet21")
    with pytest.raises(UserError, match="takes no arch_args"):
        build_model("cifar_resnet20", ImageSpec.numbered(10, 32, 3), {"width": 2})


@pytest.mark.slow
def test_needs_no_timm():
    code = (
        "import sys, crt.models.checkpoint; "
        "crt.build_model('cifar_resnet20', crt.ImageSpec.numbered(10, 32, 3)); "
        "assert 'timm' not in sys.modules"
    )
    run([sys.executable, "-c", code], check=True)
