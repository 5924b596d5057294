import csv
import math

import pytest
import torch
from torch import nn
from training_toy import batches, network, recipe, run

from crt.errors import UserError
from crt.methods.base import Batch, Loss, Teacher
from crt.methods.crt import crt
from crt.methods.gaussian import gaussian
from crt.training.loop import _optimizer, _scheduler


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log(tmp_path) -> list[dict[str, str]]:
    with (tmp_path / "log.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_learns_the_toy(tmp_path):
    progress = run(tmp_path / "work", epochs=60, clip_grad=None)
    assert len(progress.rows) == 60
    assert progress.rows[-1]["noisy_accuracy"] > 0.8
    assert progress.rows[-1]["loss"] < progress.rows[0]["loss"] / 2


def test_equals_plain_pytorch(tmp_path):
    """The loop, written out: SGD with momentum, decay of matrices only, noise from the epoch's seed."""
    from crt.methods.base import add_noise
    from crt.training.seeds import derive_seed

    model = network()
    run(tmp_path / "work", model, epochs=3, warmup_epochs=0, scheduler="multistep", clip_grad=0.5)
    other = network().to(memory_format=torch.channels_last)
    other.train()
    decayed = [p for p in other.parameters() if p.ndim > 1]
    rest = [p for p in other.parameters() if p.ndim <= 1]
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 1e-4}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    step = 0
    for epoch in range(3):
        torch.manual_seed(derive_seed(3, "network", epoch))
        generator = torch.Generator().manual_seed(derive_seed(3, "noise", epoch))
        for batch in batches().epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * 0.1 ** ((step >= 4.5) + (step >= 6.75))  # of 9 steps
            loss = nn.functional.cross_entropy(other(add_noise(batch.images, 0.25, generator)), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(other.parameters(), 0.5)
            optimizer.step()
            step += 1
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_log_has_a_row_per_epoch_with_the_parts(tmp_path):
    progress = run(tmp_path / "work", epochs=3)
    rows = log(tmp_path)
    assert list(rows[0]) == ["epoch", "lr", "loss", "cross_entropy", "noisy_accuracy"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row, kept in zip(rows, progress.rows, strict=True):
        assert float(row["loss"]) == pytest.approx(kept["loss"], rel=1e-5)
    assert not list(tmp_path.glob("*.partial"))


def test_the_log_is_written_after_each_epoch(tmp_path):
    rows_seen = []

    def method(model, batch: Batch, sigma, generator) -> Loss:
        if batch.epoch == int(batch.epoch):
            rows_seen.append(len(log(tmp_path)) if batch.epoch else 0)
        return gaussian()(model, batch, sigma, generator)

    run(tmp_path / "work", method=method, epochs=4)
    assert rows_seen == [0, 1, 2, 3]


def test_a_part_that_is_undefined_in_some_batches_is_averaged_over_the_others(tmp_path):
    values = iter([1.0, math.nan, 3.0] * 2)

    def method(model, batch, sigma, generator):
        loss = gaussian()(model, batch, sigma, generator)
        return Loss(loss.total, {"part": torch.tensor(next(values))})

    progress = run(tmp_path / "work", method=method, epochs=2)
    assert [row["part"] for row in progress.rows] == [2.0, 2.0]


def test_methods_are_told_the_epoch_with_its_fraction(tmp_path):
    epochs = []

    def method(model, batch: Batch, sigma, generator) -> Loss:
        epochs.append(batch.epoch)
        assert model.training
        assert sigma == 0.25
        return gaussian()(model, batch, sigma, generator)

    run(tmp_path / "work", method=method, epochs=2)
    assert epochs == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])


def test_noise_differs_between_steps_and_epochs_and_not_between_runs(tmp_path):
    def noises(folder) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        clean: list[torch.Tensor] = []

        class Spy(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, images):
                seen.append(images - clean[-1])
                return self.inner(images)

        def method(model, batch, sigma, generator):
            clean.append(batch.images)
            return gaussian()(model, batch, sigma, generator)

        run(folder, Spy(), method, epochs=2)
        return seen

    first, again = noises(tmp_path / "a"), noises(tmp_path / "b")
    assert len(first) == 6
    for i, noise in enumerate(first):
        assert torch.equal(noise, again[i])
        assert all(not torch.equal(noise, other) for other in first[:i])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    states = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        model = network()
        run(tmp_path / folder, model, seed=seed)
        states.append(state(model))
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


class Stop(Exception):
    """A kill that a test can aim."""


def stopping(at: float):
    def method(model, batch: Batch, sigma, generator) -> Loss:
        if batch.epoch >= at:
            raise Stop
        return gaussian()(model, batch, sigma, generator)

    return method


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [0.3, 1.0, 3.3, 5.6])
def test_a_run_that_goes_on_ends_with_the_same_weights_and_log(tmp_path, optimizer, at):
    through = network()
    whole = run(tmp_path / "through" / "work", through, optimizer=optimizer)
    with pytest.raises(Stop):
        run(tmp_path / "work", network(), stopping(at), optimizer=optimizer)
    model = network(seed=9)  # what it starts from does not matter once there is a checkpoint
    if at < 1:
        model = network()
    progress = run(tmp_path / "work", model, optimizer=optimizer)
    assert equal(state(model), state(through))
    assert progress.rows == whole.rows
    assert (tmp_path / "log.tsv").read_bytes() == (tmp_path / "through" / "log.tsv").read_bytes()
    assert progress.seconds > 0


def test_checkpoints_are_at_most_one_in_so_many_seconds(tmp_path):
    def epochs_kept_after(seconds: float) -> list[int]:
        """How many epochs the checkpoint holds when an epoch begins."""
        work, found = tmp_path / str(seconds) / "work", []

        def method(model, batch: Batch, sigma, generator) -> Loss:
            if batch.epoch == int(batch.epoch):
                found.append(kept(work))
            return gaussian()(model, batch, sigma, generator)

        run(work, method=method, checkpoint_seconds=seconds)
        return [*found, kept(work)]

    def kept(work) -> int:
        state = work / "state.pt"
        return len(torch.load(state, weights_only=True)["rows"]) if state.exists() else 0

    assert epochs_kept_after(3600) == [0] * 7
    assert epochs_kept_after(0) == [0, 1, 2, 3, 4, 5, 5]  # the last epoch needs none


def test_the_teacher_is_not_in_the_checkpoint_and_stays_as_it_was(tmp_path):
    teacher = network(7)
    before = state(teacher)
    student = network()
    method = crt(teacher=Teacher(teacher), alpha=1.0)

    def stop(model, batch, sigma, generator):
        if batch.epoch >= 2:
            raise Stop
        return method(model, batch, sigma, generator)

    with pytest.raises(Stop):
        run(tmp_path / "work", student, stop)
    saved = torch.load(tmp_path / "work" / "state.pt", weights_only=True)
    assert saved["model"].keys() == student.state_dict().keys()
    assert equal(state(teacher), before)
    assert not teacher.training


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_step_lr_and_advice(tmp_path, bad):
    count = 0

    def method(model, batch, sigma, generator):
        nonlocal count
        count += 1
        loss = gaussian()(model, batch, sigma, generator)
        return Loss(loss.total * bad if count >= 5 else loss.total, loss.parts)

    with pytest.raises(UserError) as error:
        run(tmp_path / "work", method=method)
    message = str(error.value)
    assert "student's loss is not finite at step 5 (epoch 2" in message
    assert "student.lr 0.05" in message
    assert "clip_grad" in message
    assert "\n" not in message
    assert len(torch.load(tmp_path / "work" / "state.pt", weights_only=True)["rows"]) == 1


def test_no_value_is_read_from_the_device_within_an_epoch(tmp_path, monkeypatch):
    # Calls are counted, because a read changes no result: a GPU would only wait for it in every step.
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)

        def spy(tensor, *args, _original=original, _name=name):
            reads.append(_name)
            return _original(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, spy)
    counts = []
    for size in (8, 2):  # 3 and 12 steps per epoch
        reads.clear()
        run(tmp_path / str(size), batch_size=size, epochs=2, batches=batches(size, resident=True))
        counts.append(len(reads))
    assert counts[0] == counts[1]


def test_bfloat16_trains_with_float32_weights(tmp_path):
    seen = []
    model = network()
    model[5].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    progress = run(tmp_path / "work", model, precision="bfloat16", epochs=2)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert math.isfinite(progress.rows[-1]["loss"])


def learning_rates(**changes) -> list[float]:
    chosen = recipe(**changes)
    optimizer = _optimizer(network(), chosen)
    scheduler = _scheduler(optimizer, chosen, steps=10)
    rates = []
    for step in range(chosen.epochs * 10):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_cosine():
    rates = learning_rates(epochs=8, lr=0.1, warmup_epochs=0)
    expected = [0.05 * (1 + math.cos(math.pi * step / 80)) for step in range(80)]
    assert rates == pytest.approx(expected)


def test_multistep_drops_at_a_half_and_three_quarters_of_the_steps():
    rates = learning_rates(epochs=5, lr=0.1, scheduler="multistep", warmup_epochs=0)
    assert rates == pytest.approx([0.1] * 25 + [0.01] * 13 + [0.001] * 12)


def test_warmup_rises_step_by_step():
    rates = learning_rates(epochs=8, lr=0.1, warmup_epochs=2)
    assert rates[0] == pytest.approx(1e-5)
    assert rates[10] == pytest.approx(0.05, rel=1e-3)
    assert rates[:20] == sorted(set(rates[:20]))


def test_sgd_is_without_nesterov_and_spares_biases_and_norms_the_decay():
    optimizer = _optimizer(network(), recipe())
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"]) == (0.9, False)
        for parameter in group["params"]:
            assert group["weight_decay"] == (1e-4 if parameter.ndim > 1 else 0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_all_parameters_are_updated_in_one_pass(name):
    # The flag is looked at, because it changes no result but the time of a step, which no test can hold.
    groups = _optimizer(network(), recipe(optimizer=name)).param_groups
    assert [group["fused"] for group in groups] == [True] * len(groups)
