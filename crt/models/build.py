"""Base classifiers: a network by name, fitted to the images' size, with normalization as its first layer."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crt.errors import UserError
from crt.models.cifar_resnet import DEPTHS, CifarResNet, depth_of
from crt.spec import ImageSpec

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
    """The mean of the members' logits: images [B, C, H, W] -> logits [B, K]. Each has its own front layer."""

    def __init__(self, members: Sequence[BaseClassifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


def build_model(
    arch: str,
    spec: ImageSpec,
    arch_args: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> BaseClassifier:
    """A base classifier with random weights (drawn from torch's global generator), in train mode.

    timm's networks, made for images of 224 pixels, get smaller strides or patches where the images are
    smaller (`crt.models.small_images`), unless `arch_args` say `small_images: false`.

    Example:
        >>> import torch
        >>> from crt import ImageSpec, build_model
        >>> model = build_model("resnet18", ImageSpec(("cat", "dog"), size=32, channels=3))
        >>> model(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 2])

    Args:
        arch: `cifar_resnet<depth>`, the name of any timm model, or `ensemble`: the mean of the logits of the
            members in `arch_args["members"]`, each with its arch, arch_args, mean and std.
        spec: What the images are.
        arch_args: Passed to `timm.create_model`.
        mean: Per channel of the [0,1] pixels, subtracted by the first layer; None: 0.
        std: Per channel of the [0,1] pixels, divided by in the first layer; None: 1.

    Raises:
        UserError: An unknown name (near names are listed), arguments that the network does not take, or a
            network that cannot work at this image size.
    """
    args = dict(arch_args or {})
    for name in _NOT_ARGUMENTS:
        if name in args:
            raise UserError(
                f"arch_args may not set {name} of {arch}: remove it (classes and channels follow from the "
                "data, weights from training)"
            )
    mean = [0.0] * spec.channels if mean is None else mean
    std = [1.0] * spec.channels if std is None else std
    return BaseClassifier(Normalize(mean, std), _network(arch, spec, args))


def _network(arch: str, spec: ImageSpec, args: dict[str, Any]) -> nn.Module:
    if arch == ENSEMBLE:
        return Ensemble([build_model(**member, spec=spec) for member in args["members"]])
    depth = depth_of(arch)
    if depth is None:
        return _timm_network(arch, spec, args)
    if args:
        raise UserError(f"{arch} takes no arch_args (got {', '.join(args)}): remove them")
    return CifarResNet(depth, len(spec.classes), spec.channels)


def _timm_network(arch: str, spec: ImageSpec, args: dict[str, Any]) -> nn.Module:
    import timm  # seconds to import: only where it is needed

    from crt.models.small_images import fitted, unfitted

    check_arch(arch)
    make = fitted if args.pop("small_images", True) else unfitted

    def create(**size_args: int) -> nn.Module:  # a size that args give is not given twice: see `fitted`
        network: nn.Module = timm.create_model(
            arch, num_classes=len(spec.classes), in_chans=spec.channels, **size_args, **args
        )
        return network

    return make(arch, create, spec.channels, spec.size)


def check_arch(arch: str) -> None:
    """Check that a name is one of timm's or our own.

    Raises:
        UserError: There is no such network; near names are listed.
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
