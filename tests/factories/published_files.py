"""Small networks, written as the field's repositories write their checkpoints."""

from pathlib import Path

import torch
from prepared_drops import write_prepared
from sklearn.datasets import load_digits
from torch import Tensor, nn

from crt.models.cifar_resnet import CifarResNet

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


class Front(nn.Module):
    """A normalization layer as in Cohen et al.'s code: plain tensors, so that no checkpoint has them."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean = torch.tensor(mean)
        self.std = torch.tensor(std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean[None, :, None, None]) / self.std[None, :, None, None]


class BufferedFront(Front):
    """The same, but with buffers of another shape, which a checkpoint does have."""

    def __init__(self, mean, std):
        nn.Module.__init__(self)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and BatchNorm statistics that are nowhere at their defaults, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
            module.num_batches_tracked.fill_(7)
    return network.eval()


def cifar(depth: int = 20, classes: int = 10, channels: int = 3, seed: int = 0) -> CifarResNet:
    torch.manual_seed(seed)
    return lively(CifarResNet(depth, classes, channels), seed)


def save_cohen(
    path: Path, model: nn.Sequential, arch: str = "cifar_resnet20", epoch: int = 90, **options
) -> Path:
    """locuslab/smoothing and what builds on it: SmoothAdv, Consistency, SmoothMix, CAT-RS."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    content = {
        "epoch": epoch,
        "arch": arch,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path, **options)
    return path


def save_macer(path: Path, network: nn.Module) -> Path:
    torch.save({"net": network.state_dict(), "epoch": 440}, path)
    return path


def save_crt(path: Path, model: nn.Sequential) -> Path:
    """The CRT authors' own: no architecture, and a scheduler."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    content = {
        "epoch": 199,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    torch.save(content, path)
    return path


def digits_teacher(
    mean=(0.1307,), std=(0.3081,), sigma: float = 0.25, seed: int = 0, steps: int = 60
) -> nn.Sequential:
    """A front layer and a CIFAR ResNet, trained on noisy digits until it is useful."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(Front(mean, std), CifarResNet(20, 10, 1)).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(steps):
        # The first BatchNorm's statistics settle while the rate is low, as at the end of a long training.
        optimizer.param_groups[0]["lr"] = 0.1 * max(0.0, 1 - 1.5 * step / steps)
        batch = torch.randint(len(labels), (48,))
        noisy = images[batch] + sigma * torch.randn_like(images[batch])
        loss = nn.functional.cross_entropy(model(noisy), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def digits() -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] in [0,1] and labels [N]."""
    data = load_digits()
    return torch.from_numpy(data.images).float()[:, None] / 16, torch.from_numpy(data.target).long()


def prepared_digits(folder: Path, count: int = 600) -> Path:
    """Digits as a prepared drop."""
    images, labels = digits()
    pixels = (images[:count].permute(0, 2, 3, 1) * 255).round().byte().numpy()
    return write_prepared(folder, pixels, labels[:count].tolist())
