"""Networks that are no function of one image are refused, and the module at fault is named."""

import pytest
import torch
from torch import Tensor, nn

from crt.certification.check import made_up_images
from crt.certification.smoothing import SmoothedClassifier
from crt.errors import UserError

SHAPE = (3, 8, 8)
IMAGES = torch.randint(0, 256, (2, *SHAPE), generator=torch.Generator().manual_seed(0)) / 255


class Mixer(nn.Module):
    """Adds the batch's mean to each row."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.share) * x + self.share * x.mean(0)


class Dropout(nn.Module):
    """Dropout that stays on."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1, training=True)


class Place(nn.Module):
    """Treats the rows of a batch by their place in it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linspace(0, 1, len(x))[:, None]


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(192, 16), nn.ReLU(), *middle, nn.Linear(16, 4)
    return nn.Sequential(nn.Flatten(), *layers).requires_grad_(False)


def certify(model: nn.Module, batch_size: int | None = None) -> SmoothedClassifier:
    smoothed = SmoothedClassifier(model, 0.25, n=50, device="cpu", batch_size=batch_size)
    smoothed.certify(IMAGES)
    return smoothed


@pytest.mark.parametrize("batch_size", [2, 64, 300, None])
@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (Mixer(0.2), r"depends on the other images of its batch, first in the module '3' \(Mixer\)"),
        (Mixer(0.003), r"depends on the other images of its batch, first in the module '3' \(Mixer\)"),
        (Dropout(), r"depends on chance, first in the module '3' \(Dropout\)"),
        (Place(), r"depends on the other images of its batch"),
        (
            nn.BatchNorm1d(16, track_running_stats=False),
            r"the module '3' \(BatchNorm1d\) has no running statistics",
        ),
    ],
)  # fmt: skip
def test_rows_that_depend_on_more_than_themselves(
    middle: nn.Module, message: str, batch_size: int | None
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        certify(network(middle), batch_size)
    assert "\n" not in str(caught.value)


def test_a_network_that_mixes_without_a_module_of_its_own() -> None:
    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4]
            return logits - logits.mean(0)

    with pytest.raises(UserError, match="first in the forward pass of Mixes"):
        certify(Mixes())


def test_alone_in_its_batch_a_row_cannot_be_mixed_but_another_size_shows_it() -> None:
    with pytest.raises(UserError, match="change their class when batches have 2 images instead of 1"):
        certify(network(Mixer(1.0)), batch_size=1)


@pytest.mark.parametrize("batch_size", [1, 2, 64, 300])
def test_rows_that_depend_on_nothing_else_pass(batch_size: int) -> None:
    check = certify(network(nn.BatchNorm1d(16)), batch_size).counter(SHAPE).check
    assert check is not None
    assert (check.rows, check.differing) == (128, 0)
    assert check.batch_size == (batch_size // 2 if batch_size > 1 else 2)


def test_classes_that_hang_on_the_size_of_the_batch_are_refused() -> None:
    class Sized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4]
            return logits.flip(1) if len(x) == 32 else logits

    with pytest.raises(
        UserError, match=r"\d+ of 128 made-up images change their class .* 32 images instead of 64"
    ):
        certify(Sized(), batch_size=64)


class Flips(nn.Module):
    """Gives other classes to so many of the made-up images when a batch has 32 rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        first = made_up_images(SHAPE, 0.25)[:, 0, 0, 0].sort(descending=True).values
        self.least = float(first[rows - 1 : rows + 1].mean())

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :4]
        flipped = (x[:, 0, 0, 0] > self.least) & (len(x) == 32)
        return torch.where(flipped[:, None], -logits, logits)


def test_a_class_that_changes_with_the_size_of_the_batch_is_counted_up_to_a_hundredth() -> None:
    check = certify(Flips(1), batch_size=64).counter(SHAPE).check
    assert check is not None
    assert (check.rows, check.batch_size, check.differing) == (128, 32, 1)
    with pytest.raises(UserError, match="2 of 128 made-up images change their class"):
        certify(Flips(2), batch_size=64)


def test_a_network_without_any_answer() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2] * float("nan")

    with pytest.raises(UserError, match="returns NaN for every one of the made-up images"):
        certify(Broken())


def test_the_model_given_is_never_changed() -> None:
    model = network(nn.BatchNorm1d(16)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for precision in ("bfloat16", "float32"):
        smoothed = SmoothedClassifier(model, 0.25, n=50, device="cpu", precision=precision)
        smoothed.certify(IMAGES)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
