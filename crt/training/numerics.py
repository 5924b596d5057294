"""Where and with which numerics training computes."""

import torch
from lightning_fabric import Fabric

from crt.config import Runtime
from crt.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device that `runtime.device` names; `auto` is a GPU where there is one.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(
            f"runtime.device is {name} but this machine has no such device: set it to auto or cpu"
        )
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def start_fabric(runtime: Runtime) -> Fabric:
    """Lightning Fabric on one device, with `runtime`'s precision.

    On a CPU all kernels are deterministic, so equal seeds give equal bytes; on a GPU the fastest kernels are chosen.
    """
    device = choose_device(runtime.device)
    torch.use_deterministic_algorithms(device.type == "cpu")
    # It would fill every new tensor with NaN, to show errors in operators: 10 % of a small network's step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = device.type == "cuda"
    fabric = Fabric(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        precision="bf16-mixed" if runtime.precision == "bfloat16" else "32-true",
    )
    fabric.launch()
    return fabric
