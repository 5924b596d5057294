"""Folding BatchNorm must not change the function."""

import pytest
import torch
from model_folders import make_network
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crt.inference.fold import fold_batchnorm
from crt.spec import ImageSpec


def shaken(model: nn.Module) -> nn.Module:
    """With BatchNorm statistics and weights that are not those of an untrained network."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for values in (module.running_var, module.weight):
                values.data.uniform_(0.5, 1.5, generator=generator)
            for values in (module.running_mean, module.bias):
                values.data.normal_(0, 0.3, generator=generator)
    return model.eval()


def batchnorms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


@pytest.mark.parametrize(
    ("arch", "size", "left"),
    [
        ("cifar_resnet20", 32, 0),
        ("resnet18", 16, 0),
        ("regnetx_002", 16, 0),
        ("mobilenetv3_small_050", 32, 0),
    ],
)
def test_same_logits_without_batchnorm(arch: str, size: int, left: int) -> None:
    torch.manual_seed(0)
    model = shaken(make_network(arch, ImageSpec.numbered(10, size, 3)))
    images = torch.rand(4, 3, size, size)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batchnorm(model)
    assert batchnorms(model) > 10
    assert batchnorms(folded) == left
    torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_without_batchnorm_nothing_is_traced() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = Branches()
    folded = fold_batchnorm(model)
    assert type(folded) is Branches
    assert folded is not model


class Shared(nn.Module):
    """A convolution whose output is used twice; a BatchNorm after no layer, and one after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm2d(3)
        self.linear, self.foldable = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.alone(x))
        z = (self.twice(y) + y).mean((2, 3))
        return self.foldable(self.linear(z))


def test_only_what_is_exact_is_folded() -> None:
    torch.manual_seed(0)
    model, images = shaken(Shared()), torch.rand(2, 3, 8, 8)
    folded = fold_batchnorm(model)
    assert batchnorms(folded) == 2
    assert isinstance(folded.foldable, nn.Identity)
    torch.testing.assert_close(folded(images), model(images))


class CalledTwice(nn.Module):
    """One convolution before two BatchNorms: its weights cannot hold both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.conv(self.one(self.conv(x)))).flatten(1)


def test_a_layer_called_twice_is_left_alone() -> None:
    torch.manual_seed(0)
    model, images = shaken(CalledTwice()), torch.rand(2, 3, 4, 4)
    folded = fold_batchnorm(model)
    assert batchnorms(folded) == 2
    torch.testing.assert_close(folded(images), model(images))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).flatten(1)
        return y if y.sum() > 0 else -y


def test_untraceable_models_are_copied_with_a_warning() -> None:
    torch.manual_seed(0)
    model, images = shaken(Untraceable()), torch.rand(2, 3, 4, 4)
    with pytest.warns(UserWarning, match="cannot trace Untraceable"):
        folded = fold_batchnorm(model)
    assert batchnorms(folded) == 1
    assert torch.equal(folded(images), model(images))
