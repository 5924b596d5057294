"""Which normalization layer a published network was trained behind, told from its first BatchNorm.

No published checkpoint holds that layer, and a wrong one loads without an error and gives a bad classifier.
But the first BatchNorm's running statistics are those of its input on noisy training images, so candidates
can be told apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Of the training noise, [0,1] pixel units: those of the field's checkpoints.
SIGMAS = (0.0, 0.12, 0.25, 0.5, 1.0)
CLEAR = 2.0  # the best candidate's mismatch is at most 1/CLEAR of that of any that differs from it
ALIKE = 0.05  # candidates whose normalized images differ by less, in standard deviations, are one

_Table = dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
_CONSTANTS: _Table = {
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_GRAY_CONSTANTS: _Table = {"MNIST": ((0.1307,), (0.3081,))}


@dataclass(frozen=True)
class Candidate:
    """(x - mean) / std per channel, of [0,1] pixels."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Evidence:
    """How well a candidate explains the first BatchNorm.

    Attributes:
        candidate: The normalization layer.
        sigma: The noise at which it fits best, [0,1] pixel units.
        mismatch: At that noise, see `weigh`.
    """

    candidate: Candidate
    sigma: float
    mismatch: float


def normalizations(channels: int, data: tuple[Sequence[float], Sequence[float]]) -> list[Candidate]:
    """Identity, and centering and normalizing with the field's constants and this data's mean and std."""
    known = {1: _GRAY_CONSTANTS, 3: _CONSTANTS}[channels]
    tables = {**known, "this data": (tuple(data[0]), tuple(data[1]))}
    ones = (1.0,) * channels
    found = [Candidate("identity", (0.0,) * channels, ones)]
    for name, (mean, std) in tables.items():
        found += [Candidate(f"center, {name}", mean, ones), Candidate(f"normalize, {name}", mean, std)]
    return found


def weigh(
    network: nn.Module, images: Tensor, choices: Sequence[Candidate], generator: torch.Generator
) -> list[Evidence]:
    """Evidence for each candidate, best first; empty for a network without BatchNorm.

    For each candidate h and sigma, mean m and variance v of the first BatchNorm's input on h(x + sigma e) are
    compared with its running mean and variance (M, V): the mismatch is the mean over channels of
    (m - M)^2 / V + (log v - log V)^2.

    Args:
        network: The network, without its normalization layer.
        images: Training images, float [N, C, H, W] in [0,1].
        choices: The candidates.
        generator: The source of the noise, on the CPU.
    """
    norm = _first_batchnorm(network, images[:1])
    if norm is None:
        return []
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    found = []
    for choice in choices:
        mean = torch.tensor(choice.mean, device=images.device)[:, None, None]
        std = torch.tensor(choice.std, device=images.device)[:, None, None]
        tried = {sigma: _mismatch(network, norm, (images + sigma * noise - mean) / std) for sigma in SIGMAS}
        sigma = min(tried, key=lambda s: tried[s])
        found.append(Evidence(choice, sigma, tried[sigma]))
    return sorted(found, key=lambda evidence: evidence.mismatch)


def clear_choice(evidence: Sequence[Evidence]) -> Evidence | None:
    """The best candidate, if the mismatch of each that differs from it is at least CLEAR times as large."""
    if not evidence:
        return None
    best = evidence[0]
    rivals = [e for e in evidence[1:] if not _alike(e.candidate, best.candidate)]
    clear = best.mismatch < math.inf and all(e.mismatch >= CLEAR * best.mismatch for e in rivals)
    return best if clear else None


def _alike(one: Candidate, other: Candidate) -> bool:
    """Whether the two differ, relative to the images' spread, by too little to matter."""
    return all(
        abs(m - n) <= ALIKE * max(s, t) and abs(s / t - 1) <= ALIKE
        for m, s, n, t in zip(one.mean, one.std, other.mean, other.std, strict=True)
    )


class _ReachedError(Exception):
    """Ends a forward pass where its rest is not needed."""


def _first_batchnorm(network: nn.Module, image: Tensor) -> _BatchNorm | None:
    """The BatchNorm that an image meets first, if it has running statistics."""

    def stop(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _ReachedError(norm)

    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    handles = [norm.register_forward_pre_hook(stop) for norm in norms]
    try:
        with torch.no_grad():
            network(image)
    except _ReachedError as reached:
        norm: _BatchNorm = reached.args[0]
        return norm
    finally:
        for handle in handles:
            handle.remove()
    return None


def _mismatch(network: nn.Module, norm: _BatchNorm, images: Tensor, batch: int = 128) -> float:
    count, total, squares = 0, torch.zeros(()), torch.zeros(())

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal count, total, squares
        values = inputs[0].double().transpose(0, 1).flatten(1)
        count += values.shape[1]
        total = total + values.sum(1).cpu()
        squares = squares + values.square().sum(1).cpu()
        raise _ReachedError

    handle = norm.register_forward_pre_hook(measure)
    try:
        with torch.no_grad():
            for part in images.split(batch):
                try:
                    network(part)
                except _ReachedError:
                    continue
    finally:
        handle.remove()
    mean = total / count
    var = (squares / count - mean.square()).clamp_min(1e-12)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    running_mean = norm.running_mean.double().cpu()
    running_var = norm.running_var.double().cpu().clamp_min(1e-12)
    terms = (mean - running_mean).square() / running_var + (var.log() - running_var.log()).square()
    value = float(terms.mean())
    return value if math.isfinite(value) else math.inf
