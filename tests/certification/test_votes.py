"""Vote counting: every draw counts once, whatever the batches, the order and the company."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crt.certification.noise import draw, noise_key, rounded_gaussian
from crt.certification.procedures import Draws, Stage
from crt.certification.votes import (
    Precision,
    Request,
    VoteCounter,
    certified_network,
    run_procedures,
)
from crt.devices import choose_device
from crt.errors import UserError
from crt.inference.fold import fold_batchnorm

SHAPE = torch.Size([3, 8, 8])
CPU = torch.device("cpu")


class Net(nn.Module):
    """A small network with BatchNorm whose classes all occur under noise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1) * 5)


def images(count: int) -> list[np.ndarray]:
    """Pixels [H, W, C]."""
    return list(np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


def certified(model: nn.Module, precision: Precision = "float32", compiled: bool = False) -> nn.Module:
    return certified_network(fold_batchnorm(model), SHAPE, 0.5, CPU, precision, compiled)


def counter(
    batch_size: int | None = 64,
    sigma: float = 0.5,
    network: nn.Module | None = None,
    precision: Precision = "float32",
) -> VoteCounter:
    law = rounded_gaussian(sigma)
    return VoteCounter(network or certified(Net(), precision), SHAPE, law, CPU, precision, batch_size)


def request(image: np.ndarray, start: int, stop: int, stage: Stage = Stage.ESTIMATION) -> Request:
    return Request(image.reshape(-1).astype(np.int16), noise_key(image, "test"), Draws(stage, start, stop))


REQUESTS = [
    request(image, *draws)
    for image, draws in zip(images(4), [(0, 100), (0, 3), (70, 330), (64, 128)], strict=True)
]


def by_hand(ask: Request, sigma: float = 0.5) -> list[int]:
    """One draw at a time, noise added by the definition, with the network as it was built."""
    network, votes, noise = Net().eval(), [0] * 5, np.empty((1, 192), np.int16)
    for number in range(ask.draws.start, ask.draws.stop):
        draw(rounded_gaussian(sigma), ask.key, ask.draws.stage, number, noise)
        noisy = torch.from_numpy((ask.levels + noise[0]).astype(np.float32) / 255).view(8, 8, 3)
        with torch.no_grad():
            votes[int(network(noisy.permute(2, 0, 1)[None]).argmax())] += 1
    return votes


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100, 1000])
def test_votes_are_those_of_the_definition(batch_size: int) -> None:
    votes = counter(batch_size).count(REQUESTS)
    assert [sum(row) for row in votes] == [100, 3, 260, 64]
    assert votes == [by_hand(ask) for ask in REQUESTS]
    assert all(sum(count > 0 for count in row) > 1 for row in votes if sum(row) > 10)


def test_order_and_company_do_not_matter() -> None:
    together = counter().count(REQUESTS)
    assert counter().count(REQUESTS[::-1]) == together[::-1]
    assert [counter().count([ask])[0] for ask in REQUESTS] == together


def test_draws_add_up_and_stages_differ() -> None:
    image, votes = images(1)[0], counter()
    whole, *parts = votes.count(
        [request(image, *draws) for draws in [(0, 500), (0, 37), (37, 130), (130, 500)]]
    )
    assert whole == [sum(column) for column in zip(*parts, strict=True)]
    selection = votes.count([request(image, 0, 500, Stage.SELECTION)])[0]
    assert selection != whole


def test_noise_is_not_clipped() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return x.flatten(1)[:, :2]

    votes = counter(64, sigma=1.0, network=Spy())
    seen.clear()
    votes.count([request(np.full((8, 8, 3), 128, np.uint8), 0, 640)])
    noisy = torch.cat(seen)
    assert noisy.min() < -2
    assert noisy.max() > 3
    assert noisy.mean().item() == pytest.approx(128 / 255, abs=0.02)
    assert noisy.std().item() == pytest.approx(1.0, abs=0.02)


def test_procedures_run_together_and_in_turn() -> None:
    """Each procedure receives the votes of its own draws, also when many more wait than fit into a round."""

    def procedure(first: int, second: int):
        one = yield Draws(Stage.SELECTION, 0, first)
        two = yield Draws(Stage.ESTIMATION, 0, second)
        return one, two

    asked = {number: (50 + number, 3_000 if number % 5 == 0 else 64) for number in range(30)}
    tasks = ((number, image, procedure(*asked[number])) for number, image in enumerate(images(30)))
    votes = counter(16)
    results = {number: (result, seconds) for number, result, seconds in run_procedures(votes, tasks, "test")}
    assert sorted(results) == list(range(30))
    for number, image in enumerate(images(30)):
        (one, two), seconds = results[number]
        assert seconds > 0
        expected = [request(image, 0, asked[number][0], Stage.SELECTION), request(image, 0, asked[number][1])]
        assert [one, two] == counter(64).count(expected)


def test_images_are_taken_only_when_there_is_room() -> None:
    taken = []

    def tasks():
        for number, image in enumerate(images(200)):
            taken.append(number)
            yield number, image, procedure()

    def procedure():
        return (yield Draws(Stage.SELECTION, 0, 100))

    results = run_procedures(counter(1), tasks(), "test")
    next(results)
    assert len(taken) == 1  # 100 draws fill a round of 32 batches of one


def test_the_network_is_a_copy() -> None:
    model = Net().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    counter(network=certified(model)).count(REQUESTS)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_bfloat16_votes_nearly_as_float32() -> None:
    fine = counter().count([request(images(1)[0], 0, 640)])[0]
    half = counter(precision="bfloat16")
    coarse = half.count([request(images(1)[0], 0, 640)])[0]
    assert sum(abs(a - b) for a, b in zip(fine, coarse, strict=True)) < 32
    assert sum(coarse) == 640


@pytest.mark.parametrize(("side", "batch_size"), [(8, 512), (32, 64), (64, 16), (224, 8)])
def test_cpu_batches_shrink_with_the_image(side: int, batch_size: int) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    votes = VoteCounter(network, (3, side, side), rounded_gaussian(0.5), CPU, "float32", None)
    assert votes.batch_size == batch_size


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Conv2d(1, 2, 3), "does not accept images of shape \\[3, 8, 8\\]"),
        (nn.Identity(), "returns \\[64, 3, 8, 8\\] for 64 images"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), "logits \\[64, K\\], K >= 2"),
    ],
)
def test_networks_that_are_no_classifiers(network: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        counter(network=network)


def test_a_missing_device() -> None:
    assert choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(UserError, match=r"no GPU 0 here: set the device to auto or cpu"):
            choose_device("cuda")
        with pytest.raises(UserError, match="no GPU 3 here"):
            choose_device("cuda:3")


def test_int8_votes_nearly_as_float32_in_batches_of_any_size() -> None:
    ask = [request(images(1)[0], 0, 640)]
    fine, (coarse,) = counter().count(ask)[0], counter(precision="int8").count(ask)
    assert sum(coarse) == 640
    assert sum(abs(a - b) for a, b in zip(fine, coarse, strict=True)) < 32
    assert counter(batch_size=7, precision="int8").count(ask) == [coarse]


def test_what_int8_does_not_go_with() -> None:
    folded = fold_batchnorm(Net())
    with pytest.raises(UserError, match=r"int8 is for CPUs: set precision to bfloat16"):
        certified_network(folded, SHAPE, 0.5, torch.device("cuda"), "int8", False)
    with pytest.raises(UserError, match="set compile to false"):
        certified_network(folded, SHAPE, 0.5, CPU, "int8", True)


def test_a_device_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="there is no device 'foo': choose auto, cpu"):
        choose_device("foo")


class Logits(nn.Module):
    """Two logits, the first two numbers of an image, changed by a function."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x.flatten(1)[:, :2].clone())


def test_a_draw_without_a_class_is_a_vote_for_none() -> None:
    """NaN where the second logit is large: those votes are missing, and the others are the same."""

    def broken(logits: Tensor) -> Tensor:
        logits[logits[:, 1] > 0.9] = float("nan")
        return logits

    ask = [request(images(1)[0], 0, 640)]
    (whole,), (votes,) = (
        counter(network=Logits(change)).count(ask) for change in (lambda logits: logits, broken)
    )
    assert sum(whole) == 640
    assert 100 < sum(votes) < 600
    assert votes[0] <= whole[0]
    assert votes[1] < whole[1]


def test_rows_that_do_not_count_are_not_looked_at() -> None:
    """0/0 for the rows of zeros that fill a batch up, as a standardization of each image makes."""

    def standardized(logits: Tensor) -> Tensor:
        return logits / (logits[:, :1] - logits[:, 1:]).abs()

    assert sum(counter(512, network=Logits(standardized)).count([request(images(1)[0], 0, 3)])[0]) == 3


def test_a_logit_of_minus_infinity_never_wins() -> None:
    def masked(logits: Tensor) -> Tensor:
        logits[:, 1] = -float("inf")
        return logits

    assert counter(network=Logits(masked)).count([request(images(1)[0], 0, 100)]) == [[100, 0]]


def test_precisions_do_not_change_each_other() -> None:
    """Each network is a copy of the folded one, whose weights stay float32."""
    folded = fold_batchnorm(Net())
    before = copy.deepcopy(folded.state_dict())
    for precision in ("bfloat16", "int8", "float32"):
        certified_network(folded, SHAPE, 0.5, CPU, precision, False)
    after = folded.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {value.dtype for value in after.values() if value.is_floating_point()} == {torch.float32}
