import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F

from crt.training import batchnorm
from crt.training.batchnorm import batch_norm, grouped_batch_norm

SHAPES = [(24, 8), (56, 8), (152, 4), (40, 6), (20, 8)]  # channels, side


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "MIN_SIZE", 0)


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    # A mean far from 0, of another size in every channel, so that a wrong way to merge groups would show.
    x = torch.randn(shape) * torch.linspace(0.5, 3, shape[1])[:, None, None] + torch.randn(shape[1], 1, 1) * 5
    return x.to(dtype).to(memory_format=torch.channels_last)


def everything(function, x, dy, dtype):
    """Output, the gradients and the running statistics, with weights that are the same in each call."""
    C, generator = x.shape[1], torch.Generator().manual_seed(1)
    weight, bias = (torch.rand(2, C, generator=generator) + 0.5).to(dtype).unbind()
    leaves = [x.detach().clone(), weight.clone(), bias.clone()]
    for leaf in leaves:
        leaf.requires_grad_()
    mean, var = torch.ones(C, dtype=dtype), torch.full((C,), 2.0, dtype=dtype)
    y = function(leaves[0], mean, var, *leaves[1:], True, 0.3, 1e-5)
    gradients = torch.autograd.grad(y, leaves, dy.to(y.dtype))
    return [y.detach(), *gradients, mean, var]


@pytest.mark.parametrize(("channels", "side"), SHAPES)
def test_it_is_batch_norm_in_float32_to_less_than_the_error_of_torchs_own(channels: int, side: int):
    torch.manual_seed(0)
    x, dy = channels_last(16, channels, side, side), channels_last(16, channels, side, side)
    assert batchnorm._pays(x)
    exact = everything(F.batch_norm, x.double(), dy, torch.float64)
    ours, torchs = (everything(f, x, dy, torch.float32) for f in (batch_norm, F.batch_norm))
    for result, other, truth in zip(ours, torchs, exact, strict=True):
        error, usual = ((r - truth).norm() / truth.norm() for r in (result, other))
        assert error < max(2 * usual, 1e-6)


@pytest.mark.parametrize(("channels", "side"), SHAPES)
def test_in_bfloat16_statistics_are_float32s_and_the_rest_is_within_its_rounding(channels: int, side: int):
    torch.manual_seed(0)
    x = channels_last(16, channels, side, side, dtype=torch.bfloat16)
    # Errors are relative to dy, so a mean of it, which cancels, would count as one of dx.
    dy = torch.randn_like(x)
    exact = everything(F.batch_norm, x.double(), dy, torch.float64)
    ours = everything(batch_norm, x, dy, torch.float32)
    assert [t.dtype for t in ours] == [torch.bfloat16] * 2 + [torch.float32] * 4
    tolerances = [4e-3, 4e-3, 1e-5, 1e-5, 1e-6, 1e-5]  # a rounding to bfloat16 is at most 2^-9 = 2e-3
    for result, truth, tolerance in zip(ours, exact, tolerances, strict=True):
        assert (result - truth).norm() <= tolerance * truth.norm()


def test_its_formula_is_that_of_automatic_differentiation():
    torch.manual_seed(0)
    x, dy = channels_last(4, 24, 4, 4), channels_last(4, 24, 4, 4)

    def from_the_paper(x, mean, var, weight, bias, training, momentum, eps):  # algorithm 1
        batch_mean, batch_var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        n = x.numel() // x.shape[1]
        with torch.no_grad():
            mean.copy_((1 - momentum) * mean + momentum * batch_mean)
            var.copy_((1 - momentum) * var + momentum * batch_var * n / (n - 1))
        shape = (1, -1, 1, 1)
        normalised = (x - batch_mean.view(shape)) / (batch_var.view(shape) + eps).sqrt()
        return normalised * weight.view(shape) + bias.view(shape)

    for result, truth in zip(
        everything(batch_norm, x, dy, torch.float32),
        everything(from_the_paper, x.double(), dy, torch.float64),
        strict=True,
    ):
        torch.testing.assert_close(result.double(), truth, rtol=1e-4, atol=1e-5)


def test_gradients_in_another_layout_and_a_relu_in_place_are_fine():
    torch.manual_seed(0)
    x = channels_last(8, 24, 4, 4).requires_grad_()
    mine, torchs = nn.BatchNorm2d(24), nn.BatchNorm2d(24)
    with grouped_batch_norm():
        y = F.relu(mine(x), inplace=True)
    (gradient,) = torch.autograd.grad(y.mean((2, 3)).square().sum(), x)  # expanded, so of no layout
    (expected,) = torch.autograd.grad(torchs(x).relu().mean((2, 3)).square().sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.running_var, torchs.running_var)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(24), BatchNormAct2d(24, act_layer=nn.SiLU)])
def test_torchs_and_timms_modules_use_it_within_the_context_only(norm: nn.Module):
    torch.manual_seed(0)
    x = channels_last(8, 24, 4, 4).requires_grad_()
    inside, outside = copy.deepcopy(norm), copy.deepcopy(norm)
    with grouped_batch_norm():
        y = inside(x)
        frozen = inside.eval()(x)
    z = outside(x)

    def function_of(result: torch.Tensor) -> set[str]:
        node, names = result.grad_fn, set()
        while node is not None:
            names.add(type(node).__name__)
            node = node.next_functions[0][0] if node.next_functions else None
        return names

    assert "_GroupedBackward" in function_of(y)
    assert "_GroupedBackward" not in function_of(z) | function_of(frozen)
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "x",
    [
        channels_last(4, 32, 4, 4),  # no channels to make up for
        torch.randn(4, 24, 4, 4),  # NCHW
        channels_last(3, 24, 5, 5),  # 75 pixels, no multiple of 4
        torch.randn(4, 24),
    ],
)
def test_what_it_is_not_for_goes_to_torch_unchanged(x: torch.Tensor):
    assert not batchnorm._pays(x)
    C = x.shape[1]
    results = [
        f(x, torch.zeros(C), torch.ones(C), None, None, True, 0.1, 1e-5) for f in (batch_norm, F.batch_norm)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize(("affine", "track"), [(False, True), (True, False)])
def test_modules_without_weights_or_running_statistics_work(affine: bool, track: bool):
    x = channels_last(4, 24, 4, 4)
    norm = nn.BatchNorm2d(24, affine=affine, track_running_stats=track)
    expected = copy.deepcopy(norm)(x)
    with grouped_batch_norm():
        assert torch.equal(norm(x), expected)


def test_equal_inputs_give_equal_bytes():
    torch.manual_seed(0)
    x, dy = (channels_last(16, 24, 16, 16, dtype=torch.bfloat16) for _ in range(2))
    first, second = (everything(batch_norm, x, dy, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
