"""8-bit convolutions against the arithmetic that they stand for, written out in float64."""

import copy

import pytest
import torch
from convolutions import GEOMETRIES, Twisted
from model_folders import make_network
from test_fold import shaken
from torch import Tensor, nn
from torch.nn import functional as F

from crt.errors import UserError
from crt.inference.fold import fold_batchnorm
from crt.inference.int8 import Convolution, Dequantize, Quantize, Scale, calibration_images, quantize

SHAPE = torch.Size([3, 16, 16])


@pytest.mark.parametrize(
    ("low", "high", "zero"),
    [(0.0, 2.0, 0), (-1.0, 1.0, 128), (0.5, 1.0, 0), (-3.0, -1.0, 255), (0.0, 0.0, 0)],
)
def test_a_scale_holds_its_range_and_zero(low: float, high: float, zero: int) -> None:
    scale = Scale.of(low, high)
    assert scale.zero == zero
    values = torch.linspace(min(low, 0), max(high, 0), 1000)
    back = Dequantize(scale)(Quantize(scale)(values))
    assert (back - values).abs().max() <= scale.step / 2 + 1e-6
    assert Dequantize(scale)(Quantize(scale)(torch.zeros(1))).item() == 0


def test_values_out_of_range_saturate() -> None:
    scale = Scale.of(-1, 1)
    assert Quantize(scale)(torch.tensor([-50.0, 50.0])).tolist() == [0, 255]


def literally(
    conv: nn.Conv2d, x: Tensor, source: Scale, relu: bool, other: Tensor | None, summand: Scale
) -> Tensor:
    """What a `Convolution` computes before it rounds its output."""
    step = conv.weight.abs().amax((1, 2, 3), keepdim=True) / 63
    weight = ((conv.weight / step).round() * step).double()
    values = (x.double() - source.zero) * source.step
    bias = None if conv.bias is None else conv.bias.double()
    y = F.conv2d(values, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    if other is not None:
        y = y + (other.double() - summand.zero) * summand.step
    return y.relu() if relu else y


@pytest.mark.parametrize("zero", [0, 97])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@torch.no_grad()
def test_convolution(geometry: dict, relu: bool, zero: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, **geometry)
    source, summand = Scale(0.02, zero), Scale(0.03, 11)
    x = torch.randint(0, 256, (4, 8, 9, 9)).to(torch.uint8).to(memory_format=torch.channels_last)
    exact = literally(conv, x, source, relu, None, summand)

    floats = Convolution(conv, x.shape, source, None, relu)(x)
    torch.testing.assert_close(floats.double(), exact, rtol=1e-4, atol=1e-4)

    out = Scale.of(float(exact.min()), float(exact.max()))
    integers = Convolution(conv, x.shape, source, out, relu)(x)
    assert integers.dtype == torch.uint8
    assert (Dequantize(out)(integers) - exact).abs().max() <= out.step * 0.501

    other = torch.randint(0, 256, exact.shape).to(torch.uint8).to(memory_format=torch.channels_last)
    added = literally(conv, x, source, relu, other, summand)
    out = Scale.of(float(added.min()), float(added.max()))
    result = Convolution(conv, x.shape, source, out, relu, summand)(x, other.clone())
    assert (Dequantize(out)(result) - added).abs().max() <= out.step * 0.501


@torch.no_grad()
def test_the_largest_products_do_not_overflow() -> None:
    """Without VNNI, products are added in pairs in 16 bits: 2 * 255 * 63 fits, 2 * 255 * 127 would not."""
    conv = nn.Conv2d(64, 8, 3, bias=False)
    conv.weight.fill_(1.0)
    x = torch.full((1, 64, 3, 3), 255, dtype=torch.uint8)
    result = Convolution(conv, x.shape, Scale(1.0, 0), None, relu=False)(x)
    assert result.flatten().tolist() == pytest.approx([64 * 9 * 255] * 8)


@pytest.mark.parametrize(
    "arch",
    [
        "cifar_resnet20",
        "regnetx_002",
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.nightly),
    ],
)
def test_a_network_keeps_its_logits(arch: str) -> None:
    torch.manual_seed(0)
    folded = fold_batchnorm(shaken(make_network(arch)))
    convolutions = sum(type(m) is nn.Conv2d for m in folded.modules())
    network = quantize(copy.deepcopy(folded), SHAPE, 0.25)
    assert sum(type(m) is Convolution for m in network.modules()) == convolutions
    images = torch.rand(64, *SHAPE) + 0.25 * torch.randn(64, *SHAPE)
    expected, found = folded(images), network(images)
    assert (found - expected).abs().mean() < 0.06 * expected.std()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95


def test_shortcuts_and_relus_are_part_of_their_convolutions() -> None:
    folded = fold_batchnorm(shaken(make_network("cifar_resnet20")))
    network = quantize(folded, SHAPE, 0.25)
    names = [type(m).__name__ for m in network.modules()]
    assert [names.count(n) for n in ("Quantize", "Convolution", "Dequantize", "ReLU")] == [1, 21, 1, 0]


def test_integers_do_not_depend_on_the_batch() -> None:
    folded = fold_batchnorm(shaken(make_network("cifar_resnet20")))
    network = quantize(folded, SHAPE, 0.25)
    (last,) = (m for m in network.modules() if type(m) is Dequantize)
    seen = list[Tensor]()
    last.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    images = torch.rand(64, *SHAPE)
    for part in (images, *images.split(7)):
        network(part)
    assert seen[0].float().std() > 0
    assert torch.equal(seen[0], torch.cat(seen[1:]))


def test_any_graph_stays_right() -> None:
    model = shaken(Twisted())
    folded = fold_batchnorm(model)
    network = quantize(copy.deepcopy(folded), SHAPE, 0.25)
    images = torch.rand(32, *SHAPE) + 0.25 * torch.randn(32, *SHAPE)
    expected, found = model(images), network(images)
    assert (found - expected).abs().mean() < 0.06 * expected.std()
    assert torch.equal(found, network(images))


def test_one_network_serves_two_shapes() -> None:
    folded = fold_batchnorm(shaken(Twisted()))
    for side in (16, 8, 16):
        shape = torch.Size([3, side, side])
        images = torch.rand(8, *shape)
        expected = folded(images)
        assert (quantize(folded, shape, 0.1)(images) - expected).abs().mean() < 0.1 * expected.std()


def test_made_up_images_are_fixed_and_look_at_every_scale() -> None:
    images = calibration_images(SHAPE, 0.0)
    assert torch.equal(images, calibration_images(SHAPE, 0.0))
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.2
    assert images.mean((2, 3)).std() > 0.1
    noise = calibration_images(SHAPE, 0.5) - images
    assert noise.std() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("network", [nn.Conv2d(3, 8, 3), nn.Sequential(nn.Flatten(), nn.Linear(768, 10))])
def test_networks_without_batchnorm_are_refused(network: nn.Module) -> None:
    with pytest.raises(UserError, match="int8 is for networks of convolutions with BatchNorm"):
        quantize(fold_batchnorm(network), SHAPE, 0.25)


@pytest.mark.parametrize("arch", ["mobilenetv3_small_050", "test_efficientnet"])
def test_networks_of_depthwise_convolutions_are_refused(arch: str) -> None:
    with pytest.raises(
        UserError, match=r"depthwise convolutions, such as network\..*: choose float32"
    ) as error:
        quantize(fold_batchnorm(make_network(arch).eval()), SHAPE, 0.25)
    assert "\n" not in str(error.value)


def test_torch_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UserError, match="choose float32 on this machine"):
        quantize(fold_batchnorm(Twisted()), SHAPE, 0.25)


def test_a_network_with_nan() -> None:
    folded = fold_batchnorm(Twisted())
    folded.get_submodule("stem.0").weight.data[0] = float("nan")
    with pytest.raises(UserError, match="values that are not finite"):
        quantize(folded, SHAPE, 0.25)
