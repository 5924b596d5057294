"""ResNets for 32x32 images (He et al. 2016, section 4.2), as in the field's code of randomized smoothing.

Names and shapes of the parameters are those of published CIFAR checkpoints. Shortcuts that change the shape
are 1x1 convolutions ("option B"). Needs torch alone: a certified CIFAR ResNet can be loaded without timm.
"""

import math
import re

from torch import Tensor, nn

from crt.errors import UserError

DEPTHS = (20, 32, 44, 56, 110)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, c_in, H, W] -> [B, c_out, H/stride, W/stride]."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class CifarResNet(nn.Module):
    """depth = 6n + 2 layers, three stages of n blocks: normalized images [B, C, H, W] -> logits [B, K]."""

    def __init__(self, depth: int, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))

    @staticmethod
    def _stage(c_in: int, c_out: int, stride: int, blocks: int) -> nn.Sequential:
        first = Block(c_in, c_out, stride)
        return nn.Sequential(first, *(Block(c_out, c_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def depth_of(arch: str) -> int | None:
    """The depth in a name such as `cifar_resnet20`; None for any other name.

    Raises:
        UserError: A CIFAR ResNet of a depth that is not offered.
    """
    match = re.fullmatch(r"cifar_resnet(\d+)", arch)
    if match is None:
        return None
    depth = int(match[1])
    if depth not in DEPTHS:
        names = ", ".join(f"cifar_resnet{d}" for d in DEPTHS)
        raise UserError(f"arch {arch!r} is not offered: choose one of {names}")
    return depth
