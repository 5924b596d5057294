"""What directly follows a convolution computed within it: a sum (a shortcut) and a ReLU, which then need no pass of their own.

For networks that only infer, on a CPU: oneDNN's kernels do both while the convolution's result is in registers, and take
weights that are packed for them once.
"""

import copy
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

RELUS = (F.relu, torch.relu, "relu", "relu_")
SUMS_IN_PLACE = (operator.iadd, "add_")
SUMS = (operator.add, torch.add, "add", *SUMS_IN_PLACE)


class Fused(NamedTuple):
    """A convolution and what is computed with it, at the place of the last of these nodes."""

    conv: fx.Node
    nodes: tuple[fx.Node, ...]  # the convolution first
    summand: fx.Node | None
    relu: bool


class FusedConvolution(nn.Module):
    """[B, c_in, H, W] -> [B, c_out, H', W'] of `dtype`, to which the input is converted; with the sum and the ReLU if asked for.

    It has no gradients.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self._geometry = [list(map(int, conv.padding)), list(conv.stride), list(conv.dilation), conv.groups]
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.to(dtype), *self._geometry)
        self._bias = None if conv.bias is None else conv.bias.to(dtype)
        self._dtype, self._relu, self._grouped = dtype, relu, conv.groups > 1

    def forward(self, x: Tensor, summand: Tensor | None = None) -> Tensor:
        x, packed = x.to(self._dtype), (self._weight, self._bias, *self._geometry)
        result: Tensor
        if summand is None:
            activation = "relu" if self._relu else "none"
            result = torch.ops.mkldnn._convolution_pointwise(x, *packed, activation, [], "")
        elif self._grouped:  # some kernels of grouped convolutions take no sum
            result = torch.ops.mkldnn._convolution_pointwise(x, *packed, "none", [], "").add_(summand)
            result = result.relu_() if self._relu else result
        else:
            relu, summand = "relu" if self._relu else None, summand.to(self._dtype)
            result = torch.ops.mkldnn._convolution_pointwise.binary(
                x, summand, *packed, "add", 1.0, relu, [], ""
            )
        return result


@torch.no_grad()
def fuse_convolutions(folded: nn.Module, shape: torch.Size, dtype: torch.dtype) -> nn.Module:
    """The network with fused convolutions in `dtype` (float32 or bfloat16), or as it is where there is nothing to fuse.

    folded: on a CPU, from `fold_batchnorm`, whose graph shows what follows what; networks without BatchNorm have none and stay
    as they are. shape: [C, H, W] of the images. In float32 the logits are the same up to rounding.
    """
    if not isinstance(folded, fx.GraphModule) or not _kernels_are_there(dtype):
        return folded
    network = fx.GraphModule(folded, copy.deepcopy(folded.graph))  # a graph of its own, the same layers
    skip_identities(network)
    shapes = Shapes(network)
    try:
        shapes.run(torch.zeros(2, *shape, dtype=next(network.parameters()).dtype))
    except Exception:  # images of another shape than the network's: its own code says so, when it is called
        return folded
    for number, fused in enumerate(find_fusions(network, shapes.shapes)):
        conv, last = network.get_submodule(str(fused.conv.target)), fused.nodes[-1]
        assert isinstance(conv, nn.Conv2d)
        name = f"fused_{number}"
        network.add_submodule(name, FusedConvolution(conv, fused.relu, dtype))
        inputs = fused.conv.args if fused.summand is None else (*fused.conv.args, fused.summand)
        with network.graph.inserting_before(last):
            last.replace_all_uses_with(network.graph.call_module(name, inputs))
        for node in reversed(fused.nodes):
            network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    return network


class Shapes(fx.Interpreter):
    """Runs a graph and keeps the shapes of what its nodes give."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
        return value


def find_fusions(module: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size]) -> list[Fused]:
    """Every convolution, with the sum (of tensors of one shape) and the ReLU that directly follow it and need nothing else of it."""
    found, taken = list[Fused](), set[fx.Node]()
    for node in reversed(module.graph.nodes):  # of two that are added, the later one takes the sum
        if node.op != "call_module" or not is_convolution(module.get_submodule(str(node.target))):
            continue
        if len(node.args) != 1 or node.kwargs:
            continue
        nodes, summand = [node], None
        follower = _only_user(node)
        if follower is not None and follower not in taken and _is_sum(follower):
            summand = _summand(follower, node, shapes)
            if summand is not None:
                nodes.append(follower)
                follower = _only_user(follower)
        relu = follower is not None and _is_relu(follower, module)
        if relu and follower is not None:
            nodes.append(follower)
        taken.update(nodes)
        found.append(Fused(node, tuple(nodes), summand, relu))
    return found


def _summand(total: fx.Node, conv: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> fx.Node | None:
    """What the sum adds to the convolution's result; None: no tensor of its shape, or one that others see the sum in."""
    others = [arg for arg in total.args if isinstance(arg, fx.Node) and arg is not conv]
    if len(others) != 1 or total.kwargs or shapes.get(others[0]) != shapes.get(conv):
        return None
    overwrites = total.target in SUMS_IN_PLACE and total.args[0] is others[0]
    return None if overwrites and len(others[0].users) > 1 else others[0]


def skip_identities(module: fx.GraphModule) -> None:
    """Take out of the graph what does nothing: the places of folded BatchNorms, dropout at inference."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and not _working_parts(module.get_submodule(str(node.target))):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()


def is_convolution(module: nn.Module) -> bool:
    """Whether the kernels know it."""
    return (
        type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    )


def _working_parts(module: nn.Module) -> list[nn.Module]:
    """A module's parts that do something at inference, in order."""
    if isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d):
        return []
    if type(module) is nn.Sequential:
        return [part for child in module for part in _working_parts(child)]
    return [module]


def _is_sum(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in SUMS and len(node.args) == 2


def _is_relu(node: fx.Node, module: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return [type(m) for m in _working_parts(module.get_submodule(str(node.target)))] == [nn.ReLU]
    return node.op in ("call_function", "call_method") and node.target in RELUS


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _kernels_are_there(dtype: torch.dtype) -> bool:
    """They are what torch.compile itself calls, no public API, so their form is looked at before it is relied on."""
    try:
        arguments = torch.ops.mkldnn._convolution_pointwise.binary._schema.arguments
        can = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except AttributeError:
        return False
    known = [a.name for a in arguments[:4]] == ["X", "other", "W", "B"] and arguments[8].name == "binary_attr"
    return torch.backends.mkldnn.is_available() and known and can
