"""Recognize checkpoints that others published and bring them into this project's form.

Known are the files of Cohen et al. 2019 and of the papers that build on their code (SmoothAdv, Consistency,
SmoothMix, CAT-RS, CRT), of MACER, torchvision's ResNets and anything of timm's. Recognized is what the
tensors show, never a file's name: the container, the prefixes, the network, the numbers of classes and
channels.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from crt.errors import UserError
from crt.models.build import build_model, check_arch
from crt.models.checkpoint import misfit
from crt.models.cifar_resnet import DEPTHS
from crt.spec import ImageSpec
from crt.teachers.containers import find_state

# (blocks per stage, channels of the first 1x1 or 3x3 convolution, of the second one's input) -> the name in
# torchvision and timm
_RESNETS: dict[tuple[tuple[int, ...], bool, int, int], str] = {
    ((2, 2, 2, 2), False, 64, 64): "resnet18",
    ((3, 4, 6, 3), False, 64, 64): "resnet34",
    ((3, 4, 6, 3), True, 64, 64): "resnet50",
    ((3, 4, 23, 3), True, 64, 64): "resnet101",
    ((3, 8, 36, 3), True, 64, 64): "resnet152",
    ((3, 4, 6, 3), True, 128, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), True, 256, 8): "resnext101_32x8d",
    ((3, 4, 23, 3), True, 256, 4): "resnext101_64x4d",
    ((3, 4, 6, 3), True, 128, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), True, 128, 128): "wide_resnet101_2",
}


@dataclass(frozen=True)
class Published:
    """What a checkpoint turned out to be.

    Attributes:
        arch: A name for `build_model`.
        arch_args: Its arguments.
        tensors: The network's state, under its own names.
        heads: Names of the layers that give logits.
        num_classes: Of the logits.
        front: Mean and std of a normalization layer that the file holds, or None.
        layout: Where the tensors were, in words.
        epoch: As the file counts (completed epochs, but MACER from 1 and CRT's own from 0); None: it does
            not.
    """

    arch: str
    arch_args: dict[str, Any]
    tensors: dict[str, Tensor]
    heads: tuple[str, ...]
    num_classes: int
    front: tuple[list[float], list[float]] | None
    layout: str
    left_alone: list[str]
    epoch: int | None


def recognize(
    checkpoint: Mapping[str, Any],
    source: str,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    entry: str | None = None,
) -> Published:
    """Find the network in a checkpoint.

    Args:
        checkpoint: What the file holds.
        source: The file, named in errors.
        arch: The network's name, where the tensors do not show it; where they do, it must agree.
        arch_args: The network's arguments.
        entry: Which of the file's entries holds the weights, see `crt.teachers.containers`.

    Raises:
        UserError: No state dict, a network that must be named, or one that this project cannot build.
    """
    state = find_state(checkpoint, source, entry)
    tensors = state.tensors
    if {1, 2, 4} - {tensor.ndim for tensor in tensors.values()}:
        raise UserError(
            f"{source} holds no image classifier: its tensors have no convolution or no last layer"
        )
    name = _name(checkpoint, tensors, source, arch)
    if name.startswith("regnet") and "conv1.weight" in tensors:
        tensors = {_timm_regnet_name(key): tensor for key, tensor in tensors.items()}
    args = dict(arch_args or {})
    if not name.startswith("cifar_resnet"):
        args.setdefault("small_images", False)  # others' networks keep timm's own strides and patches
    heads = _heads(name)
    for head in heads:
        if f"{head}.weight" not in tensors:
            raise UserError(
                f"{source} has no {head}.weight, which is {name}'s last layer "
                f"(first tensor {next(iter(tensors))!r}): check teacher.arch, and that the file is a whole "
                "classifier"
            )
    epoch = checkpoint.get("epoch")
    return Published(
        arch=name,
        arch_args=args,
        tensors=tensors,
        heads=heads,
        num_classes=tensors[f"{heads[0]}.weight"].shape[0],
        front=state.front,
        layout=state.layout,
        left_alone=state.left_alone,
        epoch=epoch if isinstance(epoch, int) else None,
    )


def build(found: Published, source: str, spec: ImageSpec) -> nn.Module:
    """The network with the checkpoint's weights, in eval mode, without a normalization layer.

    Args:
        found: The checkpoint.
        source: The file, named in errors.
        spec: What the images are.

    Raises:
        UserError: The tensors do not fit the network; at most ten differences are listed.
    """
    network = build_model(found.arch, spec, found.arch_args).network
    expected = network.state_dict()
    tensors = {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        for name, tensor in found.tensors.items()
    }
    for name in expected.keys() - tensors.keys():
        if name.endswith(".num_batches_tracked"):  # very old files have none, and inference needs none
            tensors[name] = torch.zeros((), dtype=torch.long)
    for name in foreign(tensors, expected):
        del tensors[name]
    differences = misfit(expected, tensors)
    if differences:
        raise UserError(
            f"{source} does not fit {found.arch}: check teacher.arch and teacher.arch_args\n  "
            + "\n  ".join(differences)
        )
    network.load_state_dict(tensors)
    return network.eval()


def foreign(tensors: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> list[str]:
    """The tensors that are no part of a network: counters of operations, or what stands beside its layers.

    A layer that the network lacks is none of these: it would change what the network computes.
    """
    tops = {name.partition(".")[0] for name in network}
    return [
        name
        for name, tensor in tensors.items()
        if name not in network
        and (
            name.rpartition(".")[2] in ("total_ops", "total_params")
            or (name.partition(".")[0] not in tops and tensor.ndim < 4)
        )
    ]


def in_order(found: Published, classes: Sequence[str], wanted: Sequence[str]) -> Published:
    """The same with its outputs, which are `classes`, in the order `wanted`."""
    order = torch.tensor([classes.index(name) for name in wanted])
    rows = [f"{head}.{part}" for head in found.heads for part in ("weight", "bias")]
    moved = {name: found.tensors[name][order] for name in rows if name in found.tensors}
    return replace(found, tensors={**found.tensors, **moved})


def _name(checkpoint: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str, arch: str | None) -> str:
    """The network's name: what the tensors show, else what is given, else the file's own word."""
    named = _named_in_file(checkpoint, source)
    shown = _cifar_resnet(tensors, source) or _resnet(tensors)
    for told, where in ((named, f"{source}'s entry arch"), (arch, "teacher.arch")):
        if shown and told and told != shown:
            raise UserError(
                f"{where} is {told}, but the tensors in {source} are {shown}'s: "
                f"set teacher.arch to {shown} or null"
            )
    name = shown or arch or named
    if name is None:
        raise UserError(
            f"{source} does not say which network it holds (first tensor {next(iter(tensors))!r}): "
            "set teacher.arch to its timm name"
        )
    return name


def _named_in_file(checkpoint: Mapping[str, Any], source: str) -> str | None:
    """The name in the entry `arch`, as this project says it."""
    arch = checkpoint.get("arch")
    if not isinstance(arch, str):
        return None
    cifar = re.fullmatch(r"(?:cifar|cifar100|imagenet32)_resnet(\d+)", arch)
    if cifar:
        return f"cifar_resnet{cifar[1]}"
    if re.fullmatch(r"lenet|cifar_densenet\d+", arch):
        raise UserError(
            f"{source} holds a {arch}, which is no network of timm's: take a teacher of another architecture"
        )
    return arch


def _heads(arch: str) -> tuple[str, ...]:
    """Names of the layers that give logits."""
    if arch.startswith("cifar_resnet"):
        return ("fc",)
    check_arch(arch)
    import timm

    classifier = timm.get_pretrained_cfg_value(arch, "classifier")
    if not classifier:
        raise UserError(f"timm does not say which layer of {arch} gives its logits: take another teacher")
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _cifar_resnet(tensors: Mapping[str, Tensor], source: str) -> str | None:
    stem, head = tensors.get("conv1.weight"), tensors.get("fc.weight")
    if stem is None or head is None or stem.shape[0] != 16 or stem.shape[2:] != (3, 3) or head.shape[1] != 64:
        return None
    blocks = [_count(tensors, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3)]
    depth = 6 * blocks[0] + 2
    if len(set(blocks)) > 1 or depth not in DEPTHS:
        names = ", ".join(f"cifar_resnet{d}" for d in DEPTHS)
        raise UserError(
            f"{source} holds a CIFAR ResNet with {'+'.join(map(str, blocks))} blocks, which is none of "
            f"{names}: take another teacher"
        )
    return f"cifar_resnet{depth}"


def _resnet(tensors: Mapping[str, Tensor]) -> str | None:
    stem = tensors.get("conv1.weight")
    if (
        stem is None
        or stem.shape[0] != 64
        or stem.shape[2:] != (7, 7)
        or "layer4.0.conv2.weight" not in tensors
    ):
        return None
    blocks = tuple(_count(tensors, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in tensors
    first, second = (tensors.get(f"layer1.0.conv{n}.weight") for n in (1, 2))
    if first is None or second is None:
        return None
    return _RESNETS.get((blocks, bottleneck, first.shape[0], second.shape[1]))


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _timm_regnet_name(name: str) -> str:
    """The CRT authors' names of a RegNetX are torchvision's style; the network is timm's."""
    rules = (
        (r"^conv1\.", "stem.conv."),
        (r"^bn1\.", "stem.bn."),
        (r"^fc\.", "head.fc."),
        (r"^layer(\d+)\.(\d+)\.conv(\d+)\.", lambda m: f"s{m[1]}.b{int(m[2]) + 1}.conv{m[3]}.conv."),
        (r"^layer(\d+)\.(\d+)\.bn(\d+)\.", lambda m: f"s{m[1]}.b{int(m[2]) + 1}.conv{m[3]}.bn."),
        (r"^layer(\d+)\.(\d+)\.downsample\.0\.", lambda m: f"s{m[1]}.b{int(m[2]) + 1}.downsample.conv."),
        (r"^layer(\d+)\.(\d+)\.downsample\.1\.", lambda m: f"s{m[1]}.b{int(m[2]) + 1}.downsample.bn."),
    )
    for pattern, new in rules:
        name, changed = re.subn(pattern, new, name)
        if changed:
            break
    return name
