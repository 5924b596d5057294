"""Where and with which numerics training computes."""

from typing import Literal

import torch
from lightning_fabric import Fabric

from crt.config import Runtime
from crt.devices import choose_device, has_bfloat16_units
from crt.processes import local_world_size, world_size


def precision_of(
    runtime: Runtime, bfloat16_on_cpu: bool, device: torch.device
) -> Literal["float32", "bfloat16"]:
    """The precision of training: `runtime`'s or, if that is auto, the faster one on this device.

    That is bfloat16 (autocast; weights and losses stay float32) where the device has units for it, but on a CPU only for
    networks that gain from it there, as their recipe says: some layers, depthwise ones above all, have slow kernels.
    """
    if runtime.precision != "auto":
        return runtime.precision
    pays = device.type != "cpu" or bfloat16_on_cpu
    return "bfloat16" if pays and has_bfloat16_units(device) else "float32"


def start_fabric(runtime: Runtime, bfloat16_on_cpu: bool) -> Fabric:
    """Lightning Fabric with the precision of `precision_of`: on one device, or under torchrun on one device per process.

    On a CPU all kernels are deterministic, so equal seeds give equal bytes; on a GPU the fastest kernels are chosen.

    Raises:
        UserError: this machine has no such device.
    """
    device = choose_device(runtime.device)
    precision = precision_of(runtime, bfloat16_on_cpu, device)
    torch.use_deterministic_algorithms(device.type == "cpu")
    # It would fill every new tensor with NaN, to show errors in operators: 10 % of a small network's step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = device.type == "cuda"
    several = world_size() > 1
    one = 1 if device.index is None else [device.index]
    fabric = Fabric(
        accelerator=device.type,
        devices=local_world_size() if several else one,
        num_nodes=world_size() // local_world_size(),
        strategy="ddp" if several else "auto",
        precision="bf16-mixed" if precision == "bfloat16" else "32-true",
    )
    fabric.launch()
    return fabric
