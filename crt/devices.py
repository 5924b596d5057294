"""Which device this process computes on."""

import os
from typing import Any

import torch
from torch import nn

from crt.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of a name; under torchrun each process has its own GPU.

    Args:
        name: auto (a GPU where there is one), cpu, mps, cuda or cuda:<number>.

    Raises:
        UserError: There is no such device.
    """
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if name == "auto":
        return torch.device(gpu if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(gpu if name == "cuda" else name)
    except RuntimeError:
        raise UserError(
            f"there is no device {name!r}: choose auto, cpu, mps, cuda or cuda:<number>"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no GPU {device.index or 0} here: set the device to auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("there is no MPS device here: set the device to auto or cpu")
    return device


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the device has units for bfloat16: AVX-512 BF16 or AMX, CUDA from capability 8.0 on."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Without such units torch has kernels too, which are many times slower than float32's.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def compiled(network: nn.Module, device: torch.device, **options: Any) -> nn.Module:
    """The network as torch.compile makes it, once it is known that a compiler works here.

    Args:
        network: The network, on the device.
        device: Its device.
        options: Those of torch.compile.

    Raises:
        UserError: No compiler works.
    """
    try:
        torch.compile(_plus_one)(torch.zeros(2, device=device))
    except Exception as error:  # each backend has exceptions of its own
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        raise UserError(
            f"the network cannot be compiled here ({reason}): install {needed}, or set compile to false"
        ) from None
    return torch.compile(network, **options)  # type: ignore[return-value]


def _plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1
