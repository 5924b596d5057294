"""Which precision training has."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from crt.devices import has_bfloat16_units
from crt.models.build import build_model
from crt.spec import ImageSpec
from crt.training import numerics
from crt.training.numerics import choose_precision, count_work, start_fabric

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
DENSE = nn.Sequential(
    nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), nn.Linear(65536, 5)
)
DEPTHWISE = nn.Sequential(DENSE[0], nn.Conv2d(64, 64, 3, padding=1, groups=64), *DENSE[1:])
SHAPE = (3, 32, 32)


def network(arch: str, arch_args: dict, channels: int, size: int) -> nn.Module:
    return build_model(
        arch, ImageSpec.numbered(10, size, channels), arch_args, [0.5] * channels, [0.25] * channels
    )


def test_operations_and_outputs_are_counted():
    work = count_work(DENSE, SHAPE)
    assert work.outputs == 2 * 64 * 1024 + 5
    assert work.operations == 64 * 1024 * 9 * (3 + 64) + 5 * 65536
    assert work.depthwise == 0
    more = count_work(DEPTHWISE, SHAPE)
    assert (more.depthwise, more.outputs) == (64 * 1024, 3 * 64 * 1024 + 5)
    assert more.operations == work.operations + 64 * 1024 * 9
    grouped = count_work(nn.Conv2d(8, 8, 1, groups=2), (8, 4, 4))
    assert (grouped.operations, grouped.depthwise) == (16 * 8 * 4, 0)


def test_attention_is_counted():
    """Of a network of 65 tokens in 2 heads of 32: the attention's two products beside the four layers."""
    vit = network(
        "vit_tiny_patch16_224", {"embed_dim": 64, "depth": 1, "num_heads": 2, "class_token": True}, 3, 32
    )
    tokens = vit.network.pos_embed.shape[1]
    patches = tokens - 1
    kernel = vit.network.patch_embed.proj.weight[0].numel()
    layers = tokens * 64 * 64 * (3 + 1 + 4 + 4)
    attention = 2 * tokens * tokens * 64
    assert count_work(vit, SHAPE).operations == patches * 64 * kernel + layers + attention + 64 * 10


def test_counting_leaves_the_network_as_it_was():
    model = network("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, 1, 8).train()
    model.network.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    count_work(model, (1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.network.layer1.training


@pytest.mark.parametrize(
    ("units", "device", "model", "shape", "expected"),
    [
        (True, CPU, DENSE, SHAPE, "bfloat16"),
        (True, CPU, DEPTHWISE, SHAPE, "float32"),
        (True, CPU, nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), (1, 8, 8), "float32"),  # too little to do
        (False, CPU, DENSE, SHAPE, "float32"),
        (True, GPU, DEPTHWISE, SHAPE, "bfloat16"),  # what is slow on a CPU need not be so here
        (False, GPU, DENSE, SHAPE, "float32"),
    ],
)
def test_auto_is_bfloat16_where_it_pays(monkeypatch, units, device, model, shape, expected):
    monkeypatch.setattr(numerics, "has_bfloat16_units", lambda device: units)
    assert choose_precision("auto", model, shape, device) == expected


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_set_is_taken(monkeypatch, units, precision):
    monkeypatch.setattr(numerics, "has_bfloat16_units", lambda device: units)
    for model in (DENSE, DEPTHWISE):
        assert choose_precision(precision, model, SHAPE, CPU) == precision


def measured(scale: str) -> list[tuple[str, float]]:
    """The students and what bfloat16 gains: time in float32 by time in bfloat16."""
    lines = (ROOT / "benchmarks/results/precisions.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if f"| {scale} |" in line]
    return [(row[1], float(row[6])) for row in cells]


@pytest.mark.parametrize(("student", "gain"), measured("small"))
def test_the_rule_takes_what_was_measured_to_gain_at_32_pixels(monkeypatch, student, gain):
    monkeypatch.setattr(numerics, "has_bfloat16_units", lambda device: True)
    option = yaml.safe_load((ROOT / f"conf/network/small/{student}.yaml").read_text(encoding="utf-8"))
    model = network(option["arch"], option["arch_args"], 3, 32)
    assert choose_precision("auto", model, SHAPE, CPU) == ("bfloat16" if gain >= 1.1 else "float32")


@pytest.mark.parametrize(("student", "gain"), measured("tiny"))
def test_the_rule_takes_no_network_that_loses_at_8_pixels(monkeypatch, student, gain):
    monkeypatch.setattr(numerics, "has_bfloat16_units", lambda device: True)
    option = yaml.safe_load((ROOT / f"conf/network/tiny/{student}.yaml").read_text(encoding="utf-8"))
    model = network(option["arch"], option["arch_args"], 1, 8)
    if choose_precision("auto", model, (1, 8, 8), CPU) == "bfloat16":
        assert gain >= 1.1
    else:
        assert gain < 1.3, "what it misses is small"


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_fabric_computes_in_it(precision, dtype):
    fabric = start_fabric(CPU, precision)
    with fabric.autocast():
        assert torch.nn.Linear(3, 2)(torch.rand(4, 3)).dtype == dtype


def test_units_of_this_cpu():
    known = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" not in known:
        pytest.skip("this release of torch, or this kind of CPU, does not list what the CPU has")
    assert has_bfloat16_units(CPU) == bool(known["avx512_bf16"] or known["amx_tile"])
    assert not has_bfloat16_units(torch.device("mps"))
