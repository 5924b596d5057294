"""Where and with which numerics training computes."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from crt.devices import has_bfloat16_units
from crt.processes import local_world_size, world_size

Precision = Literal["float32", "bfloat16"]

# What bfloat16 gains on a CPU depends on the network (benchmarks/results/precisions.md). Depthwise
# convolutions have slow kernels: networks that gain compute at most 16 % of their layers' outputs by them,
# networks that lose at least 26 %. Very small networks have too little to do in each layer to gain: from 13
# million multiply-adds on they do.
MOST_DEPTHWISE = 0.2
LEAST_OPERATIONS = 10_000_000


def choose_precision(
    wanted: Literal["auto", "float32", "bfloat16"],
    network: nn.Module,
    shape: Sequence[int],
    device: torch.device,
) -> Precision:
    """The precision of training: the one that is wanted or, if that is `auto`, the faster one.

    That is bfloat16 (autocast; weights and losses stay float32) on a GPU that has units for it, and on a CPU
    that has them for networks that gain from it there: those with enough to do, and little of it in depthwise
    convolutions.

    Args:
        wanted: What the configuration says.
        network: The network, on a CPU.
        shape: (C, H, W) of its images.
        device: Where it is trained.
    """
    if wanted != "auto":
        return wanted
    if not has_bfloat16_units(device):
        return "float32"
    if device.type != "cpu":
        return "bfloat16"
    work = count_work(network, shape)
    gains = work.operations >= LEAST_OPERATIONS and work.depthwise <= MOST_DEPTHWISE * work.outputs
    return "bfloat16" if gains else "float32"


class Work(TorchDispatchMode):
    """Counts, while it is active, what convolutions and matrix products compute.

    Attributes:
        operations: Multiply-adds.
        outputs: Numbers that they give.
        depthwise: Those of `outputs` that convolutions of one channel each give.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self.operations, self.outputs, self.depthwise = 0, 0, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None and isinstance(out, Tensor):
            self.operations += count(*args, **(kwargs or {}), out_val=out) // 2
            self.outputs += out.numel()
            if func.overloadpacket is torch.ops.aten.convolution and args[8] > 1 and args[1].shape[1] == 1:
                self.depthwise += out.numel()
        return out


def count_work(network: nn.Module, shape: Sequence[int]) -> Work:
    """What one forward pass of one image (C, H, W) takes; the network stays as it was."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        # Attention as the matrix products that it consists of.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Work() as work:
            network(torch.zeros(1, *shape))
    finally:
        for module, mode in modes:
            module.training = mode
    return work


def start_fabric(device: torch.device, precision: Precision) -> Fabric:
    """Lightning Fabric in this precision: on one device, or under torchrun on one device per process.

    On a CPU all kernels are deterministic, so equal seeds give equal bytes; on a GPU the fastest kernels are
    chosen.
    """
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
