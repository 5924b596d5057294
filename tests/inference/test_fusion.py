"""Fused convolutions against the layers that they stand for."""

import copy

import pytest
import torch
from convolutions import GEOMETRIES, Twisted
from model_folders import make_network
from test_fold import shaken
from torch import nn

from crt.inference.fold import fold_batchnorm
from crt.inference.fusion import FusedConvolution, _kernels_are_there, fuse_convolutions

SHAPE = torch.Size([3, 16, 16])
pytestmark = pytest.mark.skipif(
    not _kernels_are_there(torch.float32), reason="needs a build of torch with oneDNN"
)
bfloat16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(
        not _kernels_are_there(torch.bfloat16), reason="needs a CPU with oneDNN's bfloat16 kernels"
    ),
)


@pytest.mark.parametrize("dtype", [torch.float32, bfloat16])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@torch.no_grad()
def test_convolution(geometry: dict, relu: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, **geometry).to(dtype)
    for size in (4, 7):  # weights are packed for no size
        x = torch.randn(size, 8, 9 + size, 9).to(dtype).to(memory_format=torch.channels_last)
        exact = copy.deepcopy(conv).double()(x.double())
        other = torch.randn(exact.shape).to(dtype).to(memory_format=torch.channels_last)
        kept = other.clone()
        fused = FusedConvolution(conv, relu, dtype)
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
        for found, total in ((fused(x), exact), (fused(x.float(), other.float()), exact + other)):
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), total.relu() if relu else total, **tolerance)
        assert torch.equal(other, kept)


@pytest.mark.parametrize(
    ("arch", "relus"),
    [("cifar_resnet20", 0), ("resnet18", 0), ("resnet50", 0), ("regnetx_002", 0), ("densenet121", 62)],
)
@torch.no_grad()
def test_a_network_keeps_its_logits(arch: str, relus: int) -> None:
    torch.manual_seed(0)
    folded = fold_batchnorm(shaken(make_network(arch)))
    folded = folded.to(memory_format=torch.channels_last)
    convolutions = sum(type(m) is nn.Conv2d for m in folded.modules())
    network = fuse_convolutions(folded, SHAPE, torch.float32)
    kinds = [type(m) for m in network.modules()]
    assert kinds.count(FusedConvolution) == convolutions > 0
    assert (
        kinds.count(nn.ReLU) == relus
    )  # densenet's other ones follow BatchNorms of concatenations, which are in no convolution
    assert not any(kind is nn.Conv2d for kind in kinds)
    for count in (1, 64):
        images = torch.rand(count, *SHAPE)
        torch.testing.assert_close(network(images), folded(images), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not _kernels_are_there(torch.bfloat16), reason="needs a CPU with oneDNN's bfloat16 kernels"
)
@torch.no_grad()
def test_in_bfloat16_it_is_as_near_to_float32_as_autocast_is() -> None:
    torch.manual_seed(0)
    folded = fold_batchnorm(shaken(make_network("cifar_resnet20")))
    network = fuse_convolutions(folded, SHAPE, torch.bfloat16)
    images = torch.rand(64, *SHAPE)
    exact = folded(images)
    with torch.autocast("cpu", torch.bfloat16):
        ours, usual = network(images), folded(images)
    assert ours.dtype == usual.dtype == torch.bfloat16
    assert (ours - exact).abs().mean() < 1.1 * (usual - exact).abs().mean()


@torch.no_grad()
def test_any_graph_stays_right() -> None:
    model = shaken(Twisted())
    folded = fold_batchnorm(model)
    network = fuse_convolutions(folded, SHAPE, torch.float32)
    kinds = [type(m) for m in network.modules()]
    assert kinds.count(FusedConvolution) == 10  # one per call
    sums = [
        len(n.args) for n in network.graph.nodes if n.op == "call_module" and n.target.startswith("fused")
    ]
    assert sums.count(2) == 3  # once[2], [3] and [6]
    images = torch.rand(32, *SHAPE)
    expected = model(images)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(network(images), network(images))
    assert torch.equal(folded(images), fold_batchnorm(model)(images))  # what was given is left alone


def test_networks_without_a_graph_and_torch_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    assert fuse_convolutions(fold_batchnorm(network), SHAPE, torch.float32)[0].weight.shape == (8, 3, 3, 3)
    folded = fold_batchnorm(Twisted())
    with pytest.raises(RuntimeError, match="channels"):
        fuse_convolutions(folded, torch.Size([1, 16, 16]), torch.float32)(torch.zeros(2, 1, 16, 16))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fuse_convolutions(folded, SHAPE, torch.float32) is folded
