"""Base classifiers: a network by name, fitted to the images' size, with normalization as its first layer."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crt.errors import UserError
from crt.models.cifar_resnet import DEPTHS, CifarResNet, depth_of

# They follow from the data, or would fetch weights.
_NOT_ARGUMENTS = ("num_classes", "in_chans", "pretrained", "pretrained_cfg", "checkpoint_path")

ENSEMBLE = "ensemble"


class Normalize(nn.Module):
    """(x - mean) / std per channel, as buffers: [B, C, H, W] -> [B, C, H, W].

    Part of the classifier, so that noise and radii keep the units of the [0,1] pixels (Cohen et al. 2019).
    """

    mean: Tensor  # [C]
    std: Tensor  # [C]

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean[:, None, None]) / self.std[:, None, None]


class BaseClassifier(nn.Module):
    """The base classifier f: images [B, C, H, W] in [0,1] (plus noise, unclipped) -> logits [B, K]."""

    def __init__(self, normalize: Normalize, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalize(images))


class Ensemble(nn.Module):
    """The mean of the members' logits: images [B, C, H, W] -> logits [B, K]. Each member has its own front layer."""

    def __init__(self, members: Sequence[BaseClassifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


def build_model(
    arch: str,
    arch_args: dict[str, Any],
    num_classes: int,
    channels: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> BaseClassifier:
    """A base classifier with random weights (drawn from torch's global generator), in train mode.

    arch: `cifar_resnet<depth>` or any timm model name; arch_args: passed to `timm.create_model`. timm's networks,
    made for images of 224 pixels, get smaller strides or patches where the images are smaller (`crt.models.small_images`),
    unless arch_args say `small_images: false`. `ensemble` with arch_args `members`, each with its arch, arch_args, mean and
    std, is the mean of the members' logits.

    Raises:
        UserError: an unknown name (near names are listed), arguments that the network does not take, or a network
            that cannot work at this image size.
    """
    for name in _NOT_ARGUMENTS:
        if name in arch_args:
            raise UserError(
                f"arch_args may not set {name} of {arch}: remove it (classes and channels follow from the data, weights from training)"
            )
    depth = depth_of(arch)
    network: nn.Module
    if arch == ENSEMBLE:
        members = arch_args["members"]
        network = Ensemble(
            [
                build_model(**m, num_classes=num_classes, channels=channels, image_size=image_size)
                for m in members
            ]
        )
    elif depth is not None:
        if arch_args:
            raise UserError(f"{arch} takes no arch_args (got {', '.join(arch_args)}): remove them")
        network = CifarResNet(depth, num_classes, channels)
    else:
        network = _timm_network(arch, arch_args, num_classes, channels, image_size)
    return BaseClassifier(Normalize(mean, std), network)


def _timm_network(
    arch: str, arch_args: dict[str, Any], num_classes: int, channels: int, size: int
) -> nn.Module:
    import timm  # seconds to import: only where it is needed

    from crt.models.small_images import fit, unfitted

    check_arch(arch)
    args = dict(arch_args)
    fitted = args.pop("small_images", True)

    def create(**size_args: int) -> nn.Module:  # a size that arch_args give is not given twice: see `fit`
        network: nn.Module = timm.create_model(
            arch, num_classes=num_classes, in_chans=channels, **size_args, **args
        )
        return network

    return fit(arch, create, channels, size) if fitted else unfitted(arch, create, channels, size)


def check_arch(arch: str) -> None:
    """Hold a name to timm's and our own.

    Raises:
        UserError: there is no such network; near names are listed.
    """
    if depth_of(arch) is not None or arch == ENSEMBLE:
        return
    import timm

    if not timm.is_model(arch):
        known = [*timm.list_models(), *(f"cifar_resnet{depth}" for depth in DEPTHS)]
        near = difflib.get_close_matches(arch, known, n=5, cutoff=0.5)
        raise UserError(
            f"arch {arch!r} is no timm model and no CIFAR ResNet: "
            + (f"did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists the names")
        )
