"""Which precision training has."""

import pytest
import torch

from crt.config import Runtime
from crt.devices import has_bfloat16_units
from crt.training import numerics
from crt.training.numerics import precision_of, start_fabric

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def runtime(precision: str) -> Runtime:
    return Runtime(device="cpu", processes=1, precision=precision, compile=False, workers=0)


@pytest.mark.parametrize(
    ("units", "device", "pays_on_cpu", "expected"),
    [
        (True, CPU, True, "bfloat16"),
        (True, CPU, False, "float32"),
        (False, CPU, True, "float32"),
        (True, GPU, False, "bfloat16"),  # what is slow on a CPU need not be so here
        (False, GPU, True, "float32"),
    ],
)
def test_auto_is_bfloat16_where_it_pays(monkeypatch, units, device, pays_on_cpu, expected):
    monkeypatch.setattr(numerics, "has_bfloat16_units", lambda device: units)
    assert precision_of(runtime("auto"), pays_on_cpu, device) == expected


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_set_is_taken(monkeypatch, units, precision):
    monkeypatch.setattr(numerics, "has_bfloat16_units", lambda device: units)
    for pays in (True, False):
        assert precision_of(runtime(precision), pays, CPU) == precision


@pytest.mark.parametrize(("units", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_fabric_computes_in_it(monkeypatch, units, dtype):
    monkeypatch.setattr(numerics, "has_bfloat16_units", lambda device: units)
    fabric = start_fabric(runtime("auto"), bfloat16_on_cpu=True)
    with fabric.autocast():
        assert torch.nn.Linear(3, 2)(torch.rand(4, 3)).dtype == dtype


def test_units_of_this_cpu():
    known = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" not in known:
        pytest.skip("this release of torch, or this kind of CPU, does not list what the CPU has")
    assert has_bfloat16_units(CPU) == bool(known["avx512_bf16"] or known["amx_tile"])
    assert not has_bfloat16_units(torch.device("mps"))
