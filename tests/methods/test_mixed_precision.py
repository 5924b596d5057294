"""Under bfloat16 autocast, through the training loop's wrapper, every method still trains every parameter."""

import pytest
import torch
from lightning_fabric import Fabric
from tiny import SIGMA, batch, network, seeded

from crt.methods.base import Batch, find_method

ATTACK = {"epsilon": 0.3, "steps": 2, "num_noise": 3, "warmup_epochs": 0}
SETTINGS = {
    "smoothadv": {"attack": "pgd", **ATTACK},
    "macer": {"num_noise": 3, "lbd": 12.0, "gamma": 8.0, "beta": 16.0, "defer_epochs": 0},
    "smoothmix": {
        "num_noise": 3,
        "steps": 2,
        "step_size": 0.1,
        "mix_step": 1,
        "eta": 5.0,
        "warmup_epochs": 0,
    },
    "catrs": {
        "num_noise": 3,
        "steps": 2,
        "epsilon": 0.5,
        "lbd": 1.0,
        "votes_from": "self",
        "num_votes": 4,
        "vote_sigma": SIGMA,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_parameter_gets_the_gradient_of_full_precision_up_to_rounding(name):
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    data = batch(size=4)
    data = Batch(data.images.float(), data.labels, data.epoch)
    method = find_method(name).build(SETTINGS[name])

    full = network().float()
    method(full, data, SIGMA, seeded()).total.backward()
    model = network().float()
    with fabric.autocast():
        loss = method(fabric.setup_module(model), data, SIGMA, seeded())
    fabric.backward(loss.total)
    assert loss.total.dtype == torch.float32
    for got, want in zip(model.parameters(), full.parameters(), strict=True):
        assert got.grad is not None
        cosine = torch.nn.functional.cosine_similarity(got.grad.flatten(), want.grad.flatten(), dim=0)
        # A bias before batch normalization has no gradient but rounding's.
        assert cosine > 0.9 or want.grad.norm() < 1e-5
