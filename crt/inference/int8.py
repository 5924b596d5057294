"""Convolutions in 8-bit integers, by oneDNN on a CPU, for networks that only infer: faster than float32.

Affine quantization after training (Jacob et al. 2018, arXiv 1712.05877): activations uint8 with one scale per
tensor, weights with one scale per output channel, sums in int32, bias and everything that is no convolution
in float32. Weights have 7 bits: processors without VNNI add products in pairs in 16 bits, and 2 * 255 * 63 is
the most that fits.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from crt.errors import UserError
from crt.inference.fusion import Fused, Shapes, find_fusions, is_convolution, skip_identities

CALIBRATION_IMAGES, CALIBRATION_BATCH = 256, 64
WEIGHT_LEVELS, ACTIVATION_LEVELS = 63, 255


class Scale(NamedTuple):
    """How a tensor is stored as uint8: value = (integer - zero) * step. 0.0 is exact, so padding is too."""

    step: float
    zero: int

    @staticmethod
    def of(low: float, high: float) -> "Scale":
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError("the model computes values that are not finite: look for NaN in its weights")
        low, high = min(low, 0.0), max(high, 0.0)
        step = max((high - low) / ACTIVATION_LEVELS, 1e-12)
        return Scale(step, round(-low / step))


class Quantize(nn.Module):
    """float32 -> uint8, saturating."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = torch.mul(x, 1 / self.scale.step).add_(self.scale.zero)
        return x.round_().clamp_(0, ACTIVATION_LEVELS).to(torch.uint8)


class Dequantize(nn.Module):
    """uint8 -> float32."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x.float().sub_(self.scale.zero).mul_(self.scale.step)


class Convolution(nn.Module):
    """uint8 [B, c_in, H, W] -> uint8 (float32 where `out` is None) [B, c_out, H', W'], with its ReLU.

    With `summand`, a second uint8 input of the output's shape is added before the ReLU; its memory takes the
    result.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        shape: torch.Size,
        source: Scale,
        out: Scale | None,
        relu: bool,
        summand: Scale | None = None,
    ) -> None:
        super().__init__()
        step = (conv.weight.abs().amax((1, 2, 3)) / WEIGHT_LEVELS).clamp_min(1e-12)
        weight = (conv.weight / step[:, None, None, None]).round().to(torch.int8)
        geometry = [list(conv.stride), list(map(int, conv.padding)), list(conv.dilation), conv.groups]
        packed = torch.ops.onednn.qconv_prepack(
            weight, step, source.step, source.zero, *geometry, list(shape)
        )
        before = [*source, packed, step, torch.zeros(len(step), dtype=torch.int64)]
        after = [*geometry, *((1.0, 0, torch.float32) if out is None else (*out, torch.uint8))]
        self._before, self._bias, self._after = before, conv.bias, after
        self._relu, self._summand = relu, summand

    def forward(self, x: Tensor, summand: Tensor | None = None) -> Tensor:
        activation: str | None
        if summand is None or self._summand is None:
            activation = "relu" if self._relu else "none"
            result: Tensor = torch.ops.onednn.qconv2d_pointwise(
                x, *self._before, self._bias, *self._after, activation, [], ""
            )
        else:
            activation = "relu" if self._relu else None
            place = (*self._before, summand, self._bias, *self._after, *self._summand)
            result = torch.ops.onednn.qconv2d_pointwise.binary(x, *place, "sum", 1.0, activation, [], "")
        return result


class _Ranges(Shapes):
    """Keeps the least and the greatest value of what each node gives, too."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self._ranges: dict[fx.Node, tuple[float, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            low, high = (float(v) for v in value.aminmax())
            old = self._ranges.get(n, (low, high))
            self._ranges[n] = min(low, old[0]), max(high, old[1])
        return value

    def scale(self, node: fx.Node) -> Scale:
        return Scale.of(*self._ranges[node])


def calibration_images(shape: torch.Size, sigma: float) -> Tensor:
    """Made-up noisy images [CALIBRATION_IMAGES, C, H, W] for a network of images of `shape` [C, H, W].

    As much variation at every scale, as natural images have (1/f spectrum), in [0,1], plus the noise. They
    take the place of real images so that the integers depend on nothing but network, shape and sigma: who
    deploys a network gets the one that was certified.
    """
    generator, (C, H, W) = torch.Generator().manual_seed(0), shape
    images, side = torch.zeros(CALIBRATION_IMAGES, C, H, W), 1
    while side <= min(H, W):
        octave = torch.randn(CALIBRATION_IMAGES, C, side, side, generator=generator)
        images += F.interpolate(octave, size=(H, W), mode="bilinear", align_corners=False)
        side *= 2
    return images.sigmoid_() + sigma * torch.randn(images.shape, generator=generator)


def quantize(folded: nn.Module, shape: torch.Size, sigma: float) -> nn.Module:
    """The network with its convolutions in 8 bits: float32 [B, C, H, W] -> float32 logits, on a CPU.

    ReLUs and sums (shortcuts) that follow a convolution become part of it.

    Args:
        folded: From `fold_batchnorm`. Only convolutions next to BatchNorms are found.
        shape: [C, H, W] of the images.
        sigma: Standard deviation of their noise, [0,1] pixel units.

    Raises:
        UserError: 8 bits do not suit the network, or this machine's torch has no such kernels.
    """
    if not isinstance(folded, fx.GraphModule) or not any(map(is_convolution, folded.modules())):
        raise UserError(
            "precision int8 is for networks of convolutions with BatchNorm, such as ResNets: "
            "choose float32 for this one"
        )
    depthwise = [name for name, module in folded.named_modules() if _is_depthwise(module)]
    if depthwise:
        raise UserError(
            f"precision int8 makes networks with depthwise convolutions, such as {depthwise[0]}, no faster "
            "and risks their accuracy: choose float32 for this one"
        )
    if not _kernels_are_there():
        raise UserError(
            "precision int8 needs a build of torch with oneDNN's 8-bit kernels: "
            "choose float32 on this machine"
        )
    return quantize_any(folded, shape, sigma)


@torch.no_grad()
def quantize_any(folded: nn.Module, shape: torch.Size, sigma: float) -> nn.Module:
    """`quantize` without asking whether 8 bits suit the network, for `benchmarks/int8.py` to measure."""
    assert isinstance(folded, fx.GraphModule)
    skip_identities(folded)
    ranges = _Ranges(folded)
    for images in calibration_images(shape, sigma).split(CALIBRATION_BATCH):
        ranges.run(images)
    return _rewrite(folded, find_fusions(folded, ranges.shapes), ranges)


def _is_depthwise(module: nn.Module) -> bool:
    """Whether each channel is convolved alone.

    Around such convolutions the ranges of activations differ by far between channels and images, and reading
    and writing them takes more time than the products.
    """
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _kernels_are_there() -> bool:
    """Whether torch has the kernels as they are called here: they are torch.compile's, no public API."""
    try:
        arguments = torch.ops.onednn.qconv2d_pointwise.binary._schema.arguments
    except AttributeError:
        return False
    return torch.backends.mkldnn.is_available() and [a.name for a in arguments[6:8]] == ["qaccum", "bias"]


def _rewrite(module: fx.GraphModule, fusions: list[Fused], ranges: _Ranges) -> fx.GraphModule:
    """The graph with fused convolutions; tensors change between uint8 and float32 where that is needed."""
    last = {fused.nodes[-1]: fused for fused in fusions}
    inner = {node for fused in fusions for node in fused.nodes[:-1]}
    wanted = {f.conv.args[0] for f in fusions} | {f.summand for f in fusions}  # as uint8
    place = {node: number for number, node in enumerate(module.graph.nodes)}
    graph, floats, integers = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()

    def call(new: nn.Module, *args: fx.Node) -> fx.Node:
        name = f"int8_{len(graph.nodes)}"
        module.add_submodule(name, new)
        return graph.call_module(name, args)

    def as_float(node: fx.Node) -> fx.Node:
        if node not in floats:
            floats[node] = call(Dequantize(ranges.scale(node)), integers[node])
        return floats[node]

    def as_integer(node: fx.Node) -> fx.Node:
        if node not in integers:
            integers[node] = call(Quantize(ranges.scale(node)), floats[node])
        return integers[node]

    for node in module.graph.nodes:
        if node in inner:
            continue
        if node not in last:
            floats[node] = graph.node_copy(node, as_float)
            continue
        fused = last[node]
        source = fused.conv.args[0]
        assert isinstance(source, fx.Node)
        conv, summand = module.get_submodule(str(fused.conv.target)), fused.summand
        assert isinstance(conv, nn.Conv2d)
        out = ranges.scale(node) if summand is not None or node in wanted else None
        new = Convolution(
            conv,
            ranges.shapes[source],
            ranges.scale(source),
            out,
            fused.relu,
            None if summand is None else ranges.scale(summand),
        )
        inputs = [as_integer(source)]
        if summand is not None:
            other = as_integer(summand)
            if any(place[user] > place[node] for user in summand.users):
                other = graph.call_method("clone", (other,))  # the sum overwrites it
            inputs.append(other)
        (floats if out is None else integers)[node] = call(new, *inputs)
    graph.lint()
    return fx.GraphModule(module, graph, "Int8").eval()
