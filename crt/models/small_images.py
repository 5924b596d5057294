"""Fit timm's networks, made for images of 224 pixels or more, to small ones.

One rule for all families: the last feature map is at least 3x3 (2x2 for images below 12 pixels).
Networks of tokens (they take an `img_size` and a `patch_size`) get smaller patches. In all others the strided
layers, found in the order in which an image meets them, lose their strides from the stem on; how many is
found by trying. Kernels keep their sizes. At 32 pixels this gives the CIFAR forms that people write by hand:
ResNets with a stem of stride 1 and no max pool, RegNets with strides 1, 1, 2, 2, 2, ViTs with patches of 4.
"""

import copy
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crt.errors import UserError

PATCH_SIZES = (32, 16, 14, 8, 4, 2, 1)


def fitted(arch: str, create: Callable[..., nn.Module], channels: int, size: int) -> nn.Module:
    """The network that `create` makes, fitted to images [B, channels, size, size], in train mode.

    Args:
        arch: The network's name, for messages.
        create: Takes timm's keyword arguments `img_size` and `patch_size` where the network has them and
            nobody gave them.
        channels: Of the images.
        size: Height and width of the images, pixels.

    Raises:
        UserError: The network does not take the arguments that it was given, or cannot work at this size.
    """
    images = torch.zeros(1, channels, size, size)
    size_args = {"img_size": size} if _takes(create, img_size=size) else {}
    try:
        network = create(**size_args)
    except TypeError as error:
        raise UserError(f"arch_args do not fit {arch}: {error}") from None
    except Exception as error:  # whatever a network raises for a size that it was not made for
        raise UserError(
            f"{arch} cannot be built for images of {size} pixels ({error!r}): change arch or arch_args"
        ) from error
    if _native_patch(network) and size_args and _takes(create, **size_args, patch_size=1):
        network = _with_smaller_patches(network, create, images)
    else:
        network = _with_lower_strides(network, images)
    if last_map(network, images) is None:
        raise UserError(f"{arch} cannot work on images of {size} pixels: choose another arch or arch_args")
    return network.train()


def unfitted(arch: str, create: Callable[..., nn.Module], channels: int, size: int) -> nn.Module:
    """The network that `create` makes, with its own strides and patches, in train mode.

    Raises:
        UserError: See `fitted`.
    """
    try:
        network = create()
    except TypeError as error:
        raise UserError(f"arch_args do not fit {arch}: {error}") from None
    if last_map(network, torch.zeros(1, channels, size, size)) is None:
        raise UserError(
            f"{arch} cannot work on images of {size} pixels with its own strides and patches: "
            "choose another arch or arch_args"
        )
    return network.train()


def last_map(network: nn.Module, images: Tensor) -> int | None:
    """Side of the last feature map (or square of tokens) for these images; None where the network fails."""
    network.eval()  # BatchNorm's statistics stay as they are
    try:
        with torch.no_grad():
            features = network.forward_features(images)  # type: ignore[operator]
            network.forward_head(features)  # type: ignore[operator]
    except Exception:  # a map smaller than a kernel, a window or a grid: each family has its own error
        return None
    if features.ndim == 4:
        return features.shape[2]  # a side in NCHW and in NHWC
    return math.isqrt(features.shape[1])


def _least(size: int) -> int:
    return min(3, size // 4)


def _takes(create: Callable[..., nn.Module], **size_args: int) -> bool:
    try:
        create(**size_args)
    except TypeError as error:
        return not any(name in str(error) for name in size_args)
    except Exception:  # taken, though not at this size
        return True
    return True


def _native_patch(network: nn.Module) -> int | None:
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    return patch[0] if isinstance(patch, tuple) else patch


def _with_smaller_patches(network: nn.Module, create: Callable[..., nn.Module], images: Tensor) -> nn.Module:
    """The largest patches, its own or smaller, with at least 7x7 tokens (half the side of tiny images)."""
    size = images.shape[-1]
    native = _native_patch(network)
    assert native is not None
    tried = network
    for patch in [p for p in PATCH_SIZES if p <= native and size % p == 0]:
        if size // patch < min(7, size // 2):
            continue
        tried = network if patch == native else create(img_size=size, patch_size=patch)
        if (last_map(tried, images) or 0) >= _least(size):
            break
    return tried


def _with_lower_strides(network: nn.Module, images: Tensor) -> nn.Module:
    """Halve the strides of the first reduction, again and again, until the last map is large enough."""
    side = last_map(network, images)
    while (side or 0) < _least(images.shape[-1]):
        lowered = copy.deepcopy(network)
        strided = _first_reduction(lowered, images)
        for name in strided:
            _halve_stride(lowered, name)
        side_now = last_map(lowered, images)
        if not strided or (side_now is None and side is not None):
            return network  # nothing is left to lower, or this network cannot do without
        network, side = lowered, side_now
    return network


def _first_reduction(network: nn.Module, images: Tensor) -> list[str]:
    """Names of the strided layers that shrink the first map that is shrunk: a block's branches together."""
    met: list[tuple[str, int]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if _stride(layer) > 1 and output.shape[-1] < inputs[0].shape[-1]:
                met.append((name, inputs[0].shape[-1]))

        return hook

    leaves = [(name, layer) for name, layer in network.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(note(name)) for name, layer in leaves if hasattr(layer, "stride")]
    last_map(network, images)
    for handle in handles:
        handle.remove()
    return [name for name, side in met if side == met[0][1]]


def _stride(layer: nn.Module) -> int:
    stride = layer.stride
    return stride[0] if isinstance(stride, tuple) else int(stride)  # type: ignore[arg-type]


def _halve_stride(network: nn.Module, name: str) -> None:
    """Halve a layer's stride so that its output is input / stride; a pool left without stride goes."""
    layer = network.get_submodule(name)
    stride = _stride(layer) // 2
    if not isinstance(layer, nn.Conv2d):
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
        return
    layer.stride = (stride, stride)
    kernel = layer.kernel_size[0]
    if layer.padding != (kernel // 2, kernel // 2) or kernel % 2 == 0:
        # Padding that is not the same on all sides costs a copy, of which torch would warn.
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
        layer.padding = "same" if stride == 1 else ((kernel - stride) // 2,) * 2
