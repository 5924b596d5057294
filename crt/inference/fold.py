"""BatchNorm folded into the layer before it, for networks that only infer: fewer operations."""

import copy
import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Tracer(fx.Tracer):
    """Looks only into modules that hold a BatchNorm: what is not to be folded keeps its own Python code."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or not _holds_batchnorm(m)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of `model` for inference (eval mode, no gradients), its BatchNorms folded where that is exact.

    Folded are BatchNorms whose input is the output of one convolution or linear layer that nothing else uses;
    timm's BatchNorm with an activation keeps the activation. Results agree up to floating point. A model that
    torch.fx cannot trace is copied as it is, with a warning.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    if not _holds_batchnorm(frozen):
        return frozen
    tracer = _Tracer()
    try:
        graph = tracer.trace(frozen)
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        warnings.warn(
            f"BatchNorm stays unfolded, since torch.fx cannot trace {type(model).__name__} ({error})",
            stacklevel=2,
        )
        return frozen
    modules: dict[str, Any] = dict(frozen.named_modules())
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], _BatchNorm):
            _fold(node, modules, frozen)
    graph.lint()
    return fx.GraphModule(frozen, graph, type(model).__name__).eval()


def _fold(node: fx.Node, modules: dict[str, Any], root: nn.Module) -> None:
    """Fold the BatchNorm called at `node` into the layer that feeds it and nothing else, if there is one."""
    source, name = node.args[0], str(node.target)
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return
    layer, norm = modules[str(source.target)], modules[name]
    rest = _after_batchnorm(norm)
    called_once = all(sum(n.target == t for n in node.graph.nodes) == 1 for t in (source.target, name))
    if rest is None or not called_once or norm.running_mean is None:
        return
    with torch.no_grad():
        if type(layer) in CONVOLUTIONS:
            folded: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
            folded = fuse_linear_bn_eval(layer, norm)
        else:
            return
    _replace(root, str(source.target), folded.requires_grad_(False))
    _replace(root, name, rest)
    modules[str(source.target)], modules[name] = folded, rest


def _after_batchnorm(norm: Any) -> nn.Module | None:
    """What a BatchNorm module does after normalizing; None: unknown."""
    if type(norm) in BATCHNORMS:
        return nn.Identity()
    if hasattr(norm, "drop") and hasattr(norm, "act"):  # timm's BatchNormAct2d
        return nn.Sequential(norm.drop, norm.act)
    return None


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def _holds_batchnorm(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) for m in module.modules())
