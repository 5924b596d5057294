"""What kernels of convolutions and rewritten graphs are tried on."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4},
    {"kernel_size": 3, "padding": 1, "groups": 8},
    {"kernel_size": 7, "padding": 3, "stride": 2},
    {"kernel_size": 7, "padding": (3, 2), "stride": (2, 1)},
]


class Twisted(nn.Module):
    """Sums in place that others see, of two shapes, of a thing with itself; one convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.twice = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.once = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 1, groups=groups), nn.BatchNorm2d(8), nn.Dropout(0.5))
            for groups in (1, 1, 1, 2, 1, 1, 1)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.twice(x) + x)
        y = F.relu(self.once[0](y) + y.mean((2, 3), keepdim=True))  # [B, 8, 1, 1]
        same = y
        y = y.add_(self.once[1](y))  # `same` sees it
        z = self.once[2](y + same).add_(x).relu_()
        z = (z + z).sigmoid() + x  # x is needed after the sum above
        z = (self.once[3](z) + self.twice(z)).relu()
        z = torch.add(self.once[4](z), self.once[5](y), alpha=2).relu()
        z = z + self.once[6](z)
        return self.head((z - y).mean((2, 3)))
