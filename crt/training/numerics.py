"""Where and with which numerics training computes."""

import torch
from lightning_fabric import Fabric

from crt.config import Runtime
from crt.devices import choose_device
from crt.processes import local_world_size, world_size


def start_fabric(runtime: Runtime) -> Fabric:
    """Lightning Fabric with `runtime`'s precision: on one device, or under torchrun on one device per process.

    On a CPU all kernels are deterministic, so equal seeds give equal bytes; on a GPU the fastest kernels are chosen.

    Raises:
        UserError: this machine has no such device.
    """
    device = choose_device(runtime.device)
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
        precision="bf16-mixed" if runtime.precision == "bfloat16" else "32-true",
    )
    fabric.launch()
    return fabric
