"""Which convolutions of a traced network can take what directly follows them: a sum (a shortcut) and a ReLU.

Kernels that do both while the convolution's result is in registers save two passes over memory. This module
finds the places, on any device, and computes nothing.
"""

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
    """Every convolution, with the sum and the ReLU that directly follow it and are its only users.

    Args:
        module: The traced network.
        shapes: Of what its nodes give; a sum must be of tensors of one shape.
    """
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
    """What the sum adds to the convolution's result.

    None: it has another shape, or the sum overwrites it and others read it.
    """
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
