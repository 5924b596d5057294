"""BatchNorm in training, on a CPU, for numbers of channels that torch's kernels handle badly: the same function, faster.

torch sums the statistics of channels-last images into one row of C floats per thread. Where C is no multiple of 16, the rows of
two threads share a cache line (64 bytes), which the cores then take from each other for every pixel; and vectors of 16 or 32
numbers are not filled. Seen as an image with k * C channels and one k-th of the pixels, the same memory has neither problem.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LINE = 16  # floats
LANES = 32  # bfloat16 numbers in a vector
MIN_SIZE = 400_000  # numbers in a tensor: below, what the detour costs is more than what it saves

_torch_batch_norm: Callable[..., Tensor] = F.batch_norm


@contextmanager
def grouped_batch_norm() -> Iterator[None]:
    """Within, torch's and timm's BatchNorm modules compute by `batch_norm`."""
    with mock.patch.object(F, "batch_norm", batch_norm):
        yield


def batch_norm(
    input: Tensor,  # noqa: A002 - the names and the order are those of F.batch_norm
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.batch_norm`, by `_Grouped` where that is faster. Differentiable once."""
    rest = (running_mean, running_var, weight, bias)
    if training and _pays(input) and all(t is not None and t.dtype == torch.float32 for t in rest):
        result: Tensor = _Grouped.apply(input, *rest, momentum, eps)
        return result
    return _torch_batch_norm(input, *rest, training, momentum, eps)


def _pays(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.shape[1] % LINE != 0
        and x.numel() >= MIN_SIZE
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() % (_pixels(x.shape[1]) * x.shape[1]) == 0
    )


def _pixels(channels: int) -> int:
    """The k of the view: the least power of 2 that fills vectors."""
    k = 1
    while k * channels % LANES:
        k *= 2
    return k


class _Grouped(torch.autograd.Function):
    """x [B, C, H, W], channels-last -> the same, normalised with the batch's statistics (Ioffe & Szegedy 2015, algorithm 1)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        C = x.shape[1]
        k, count = _pixels(C), x.numel() // C
        grouped = _grouped(x, k)
        unused = torch.zeros(2, k * C)  # its type keeps the statistics in float32
        means, variances = torch.batch_norm_update_stats(grouped, unused[0], unused[1], 0.0)
        # The variance of the whole: the mean of the groups' and the variance of their means, since they are of equal size.
        means, variances = means.view(k, C), variances.view(k, C)
        mean = means.mean(0)
        var = (means - mean).square_().add_(variances).mean(0)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
        y = torch.empty_like(x)  # not a view: a ReLU may work in place
        parameters = torch.stack((weight, bias, mean, var))
        _affine(grouped, _repeat(parameters, k), eps, out=_grouped(y, k))
        ctx.save_for_backward(x, parameters)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, parameters = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        C = x.shape[1]
        k, count = _pixels(C), x.numel() // C
        grouped = _grouped(x, k)
        weight, _, mean, var = parameters
        weights, _, means, variances = _repeat(parameters, k)
        _, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            _grouped(dy, k), grouped, weights, means, variances, None, None, False, ctx.eps, [False, True, True]
        )  # fmt: skip
        d_weight, d_bias = d_weight.view(k, C).sum(0), d_bias.view(k, C).sum(0)
        # dx = scale * (dy - mean(dy) - x_hat * mean(dy * x_hat)) = scale * dy + slope * x + shift. The scale is rounded to
        # x's type first, as autocast rounds weights, so that dx stays orthogonal to 1 and x_hat.
        inverse = torch.rsqrt(var + ctx.eps)
        rounded = (weight * inverse).to(x.dtype)
        scale = rounded.float()
        slope = scale * inverse * d_weight / -count
        shift = scale * d_bias / -count - slope * mean
        line = torch.stack((slope, shift, torch.zeros_like(mean), torch.ones_like(mean)))
        dx = torch.empty_like(x)
        _affine(grouped, _repeat(line, k), 0.0, out=_grouped(dx, k))
        while k * C < 1024 and count % (2 * k) == 0:  # long rows, for torch's loop over them
            k *= 2
        rows = (count // k, k * C)
        dx.as_strided(rows, (k * C, 1)).addcmul_(dy.as_strided(rows, (k * C, 1)), torch.cat((rounded,) * k))
        return dx, None, None, d_weight, d_bias, None, None


def _grouped(x: Tensor, k: int) -> Tensor:
    """[B, C, H, W], channels-last -> a view [1, k*C, B*H*W/k, 1], channels-last too."""
    channels = k * x.shape[1]
    return x.as_strided((1, channels, x.numel() // channels, 1), (x.numel(), 1, channels, channels))


def _repeat(parameters: Tensor, k: int) -> Tensor:
    """[4, C] -> [4, k*C], for the view's channels. (Tensor.repeat takes ten times as long for so few numbers.)"""
    return torch.cat((parameters,) * k, 1)


def _affine(x: Tensor, parameters: Tensor, eps: float, out: Tensor) -> None:
    """out = (x - mean) / sqrt(var + eps) * weight + bias; parameters [4, channels of x]: weight, bias, mean, var."""
    none = [torch.empty(0), torch.empty(0)]
    torch.ops.aten.native_batch_norm.out(
        x, *parameters, False, 0.0, eps, out=out, save_mean=none[0], save_invstd=none[1]
    )
