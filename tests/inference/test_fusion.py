"""Where a convolution can take a sum and a ReLU: putting them together there keeps the network's logits."""

import copy

import pytest
import torch
from convolutions import Twisted
from model_folders import make_network
from test_fold import shaken
from torch import Tensor, fx, nn

from crt.inference.fold import fold_batchnorm
from crt.inference.fusion import Fused, Shapes, find_fusions, skip_identities
from crt.spec import ImageSpec

SHAPE = torch.Size([3, 16, 16])


class Together(nn.Module):
    """A convolution with the sum and the ReLU that it takes, as a kernel would do them."""

    def __init__(self, conv: nn.Module, relu: bool) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, x: Tensor, summand: Tensor | None = None) -> Tensor:
        y = self.conv(x) if summand is None else self.conv(x) + summand
        return y.relu() if self.relu else y


def found_in(model: nn.Module, device: str = "cpu") -> tuple[fx.GraphModule, list[Fused]]:
    module = fold_batchnorm(model)
    assert isinstance(module, fx.GraphModule)
    module = copy.deepcopy(module).to(device)
    skip_identities(module)
    shapes = Shapes(module)
    with torch.no_grad():
        shapes.run(torch.zeros(2, *SHAPE, device=device))
    return module, find_fusions(module, shapes.shapes)


def put_together(module: fx.GraphModule, fusions: list[Fused]) -> None:
    """Replace what was found by one call each, at the place of its last node."""
    for number, fused in enumerate(fusions):
        name, last = f"together_{number}", fused.nodes[-1]
        module.add_submodule(name, Together(module.get_submodule(str(fused.conv.target)), fused.relu))
        inputs = fused.conv.args if fused.summand is None else (*fused.conv.args, fused.summand)
        with module.graph.inserting_before(last):
            last.replace_all_uses_with(module.graph.call_module(name, inputs))
        for node in reversed(fused.nodes):
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


def build(arch: str) -> nn.Module:
    torch.manual_seed(0)
    return shaken(make_network(arch, ImageSpec.numbered(10, SHAPE[1], SHAPE[0])))


@pytest.mark.parametrize(
    ("arch", "sums", "relus"),
    [
        ("cifar_resnet20", 9, 0),
        ("resnet18", 8, 0),
        pytest.param("resnet50", 16, 0, marks=pytest.mark.nightly),
        ("regnetx_002", 13, 0),
        # ReLUs that follow the BatchNorm of a concatenation follow no convolution.
        pytest.param("densenet121", 0, 62, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_a_network_keeps_its_logits(arch: str, sums: int, relus: int) -> None:
    model = build(arch)
    module, fusions = found_in(model)
    convolutions = sum(type(m) is nn.Conv2d for m in module.modules())
    put_together(module, fusions)
    module.delete_all_unused_submodules()
    assert len(fusions) == convolutions
    assert sum(fused.summand is not None for fused in fusions) == sums
    assert sum(type(m) is nn.ReLU for m in module.modules()) == relus
    images = torch.rand(8, *SHAPE)
    torch.testing.assert_close(module(images), model(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_any_graph_stays_right() -> None:
    model = shaken(Twisted())
    module, fusions = found_in(model)
    assert len(fusions) == 10  # one per call
    assert sum(fused.summand is not None for fused in fusions) == 3  # once[2], [3] and [6]
    put_together(module, fusions)
    images = torch.rand(32, *SHAPE)
    torch.testing.assert_close(module(images), model(images), rtol=1e-4, atol=1e-4)


def test_the_places_are_the_same_on_any_device() -> None:
    """The meta device computes nothing, and stands for all that are no CPU."""
    model = build("resnet18")
    here, there = (
        [(f.conv.name, [n.name for n in f.nodes], f.summand and f.summand.name, f.relu) for f in fusions]
        for _, fusions in (found_in(model), found_in(model, "meta"))
    )
    assert here == there
