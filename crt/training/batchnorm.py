"""BatchNorm in training, on a CPU, for numbers of channels that torch's kernels handle badly: the same function, faster.

torch sums the statistics of channels-last images into one row of C floats per thread. Where C is no multiple of 16, the rows of
two threads share a cache line (64 bytes), which the cores then take from each other for every pixel; and vectors of 16 or 32
numbers are not filled. Seen as an image with k * C channels and one k-th of the pixels, the same memory has neither problem.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
    before = F.batch_norm
    F.batch_norm = batch_norm
    try:
        yield
    finally:
        F.batch_norm = before


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
        unused = torch.zeros(k * C)  # running statistics, whose type keeps the batch's in float32
        means, variances = torch.batch_norm_update_stats(grouped, unused, unused, 0.0)
        # The variance of the whole: the mean of the groups' and the variance of their means, since they are of equal size.
        means, variances = means.view(k, C), variances.view(k, C)
        mean = means.mean(0)
        var = (means - mean).square_().add_(variances).mean(0)
        running_mean.lerp_(mean, momentum)
        running_var.mul_(1 - momentum).add_(var, alpha=momentum * count / (count - 1))
        parameters = _repeat(torch.stack((weight, bias, mean, var)), k)
        y = torch.empty_like(x)  # not a view: a ReLU may work in place
        _normalise(grouped, parameters, eps, out=_grouped(y, k))
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
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            _grouped(dy, k), grouped, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack(sums).view(2, k, C).sum(1)  # over the batch, of dy * x_hat and dy
        # dx = scale * (dy - mean(dy) - x_hat * mean(dy * x_hat)). The scale is rounded to x's type first, as autocast rounds
        # weights, so that dx stays orthogonal to 1 and x_hat.
        scale = (torch.rsqrt(var[:C] + ctx.eps) * weight[:C]).to(x.dtype)
        dx = torch.empty_like(x)
        rest = _repeat(sums * (scale.float() / -count), k)
        _normalise(grouped, torch.cat((rest, parameters[2:])), ctx.eps, out=_grouped(dx, k))
        while k * C < 1024 and count % (2 * k) == 0:  # long rows, for torch's loop over them
            k *= 2
        rows = (count // k, k * C)
        dx.as_strided(rows, (k * C, 1)).addcmul_(dy.as_strided(rows, (k * C, 1)), torch.cat((scale,) * k))
        return dx, None, None, *sums, None, None


def _grouped(x: Tensor, k: int) -> Tensor:
    """[B, C, H, W], channels-last -> a view [1, k*C, B*H*W/k, 1], channels-last too."""
    channels = k * x.shape[1]
    return x.as_strided((1, channels, x.numel() // channels, 1), (x.numel(), 1, channels, channels))


def _repeat(parameters: Tensor, k: int) -> Tensor:
    """[P, C] -> [P, k*C], for the view's channels. (Tensor.repeat takes ten times as long for so few numbers.)"""
    return torch.cat((parameters,) * k, 1)


def _normalise(x: Tensor, parameters: Tensor, eps: float, out: Tensor) -> None:
    """out = (x - mean) / sqrt(var + eps) * weight + bias; parameters [4, channels of x]: weight, bias, mean, var."""
    unused = [torch.empty(0), torch.empty(0)]
    torch.ops.aten.native_batch_norm.out(
        x, *parameters, False, 0.0, eps, out=out, save_mean=unused[0], save_invstd=unused[1]
    )
