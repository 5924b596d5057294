"""The same network in the wrappings in which people's files come."""

import pytest
import torch
from published_files import cifar

from crt.errors import UserError
from crt.spec import ImageSpec
from crt.teachers.published import build, recognize

SPEC = ImageSpec(("a", "b", "c"), 32, 3)
GOOD, OTHER = cifar(classes=3, seed=1), cifar(classes=3, seed=2)
STATE, RAW = GOOD.state_dict(), OTHER.state_dict()


def behind(prefix, state=STATE):
    return {prefix + name: tensor for name, tensor in state.items()}


COUNTER = {"n_averaged": torch.tensor(7)}
LOSS = {"criterion.weight": torch.ones(3)}
FORMS = {
    "plain": (STATE, "a bare state dict, no prefix", []),
    "DataParallel": ({"state_dict": behind("module.")}, "entry 'state_dict', prefix 'module.'", []),
    "compiled": (behind("_orig_mod."), "a bare state dict, prefix '_orig_mod.'", []),
    "compiled in DDP": (
        {"model": behind("module._orig_mod.")},
        "entry 'model', prefix 'module._orig_mod.'",
        [],
    ),
    "tutorial": (
        {"model_state_dict": STATE, "optimizer_state_dict": {}, "epoch": 3, "loss": 0.1},
        "entry 'model_state_dict', no prefix",
        [],
    ),
    "timm with EMA": (
        {"state_dict": RAW, "state_dict_ema": STATE, "arch": "cifar_resnet20", "epoch": 3},
        "entry 'state_dict_ema', no prefix; not state_dict, which teacher.entry would choose",
        [],
    ),
    "timm without EMA": ({"state_dict": STATE, "state_dict_ema": None}, "entry 'state_dict', no prefix", []),
    "torchvision with EMA": (
        {"model": RAW, "model_ema": behind("module.") | COUNTER},
        "entry 'model_ema', prefix 'module.'; not model, which teacher.entry would choose",
        ["n_averaged"],
    ),
    "AveragedModel": (behind("module.") | COUNTER, "a bare state dict, prefix 'module.'", ["n_averaged"]),
    "Lightning": (
        {"state_dict": behind("model.") | LOSS},
        "entry 'state_dict', prefix 'model.'",
        ["criterion.weight"],
    ),
    "Lightning with a metric": (
        {"state_dict": behind("net.") | {"accuracy.confmat": torch.ones(3, 3)}},
        "entry 'state_dict', prefix 'net.'",
        ["accuracy.confmat"],
    ),
    "distilled": (
        {"state_dict": behind("student.") | behind("teacher.", RAW)},
        "entry 'state_dict', prefix 'student.'; not teacher., which teacher.entry would choose",
        [],
    ),
    "an entry of an unknown name": ({"my_net": STATE, "epoch": 1}, "entry 'my_net', no prefix", []),
    "nested": ({"checkpoint": 1, "model": {"state_dict": STATE}}, "entry 'model.state_dict', no prefix", []),
    "bfloat16": (
        {name: t.bfloat16() if t.is_floating_point() else t for name, t in STATE.items()},
        "no prefix",
        [],
    ),
}


def restored(found):
    state = build(found, "x", SPEC).state_dict()
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def same(found, state, tolerance=0.0):
    return all(
        torch.allclose(tensor, state[name], rtol=tolerance) for name, tensor in restored(found).items()
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_right_weights_are_found_and_it_is_said_where(form):
    checkpoint, layout, left_alone = FORMS[form]
    found = recognize(checkpoint, "x.pth")
    assert found.arch == "cifar_resnet20"
    assert found.layout.endswith(layout)
    assert found.left_alone == left_alone
    assert same(found, STATE, 0.01 if form == "bfloat16" else 0.0)
    assert not same(found, RAW, 0.01)


def test_a_parameter_chooses_other_weights():
    for form, entry in (
        ("timm with EMA", "state_dict"),
        ("torchvision with EMA", "model"),
        ("distilled", "teacher"),
    ):
        found = recognize(FORMS[form][0], "x.pth", entry=entry)
        assert same(found, RAW)
    with pytest.raises(
        UserError, match=r"no entry and no prefix 'ema': set teacher.entry to one of state_dict_ema, state"
    ):
        recognize(FORMS["timm with EMA"][0], "x.pth", entry="ema")


def test_counters_of_operations_are_left_alone_and_layers_are_not():
    counted = STATE | {"total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)}
    assert same(recognize(counted, "x.pth"), STATE)
    assert same(recognize(STATE | {"projection.weight": torch.ones(8, 64)}, "x.pth"), STATE)
    squeezed = STATE | {"layer1.0.se.fc1.weight": torch.ones(4, 16, 1, 1)}  # it would change the logits
    with pytest.raises(UserError, match=r"layer1.0.se.fc1.weight"):
        build(recognize(squeezed, "x.pth"), "x.pth", SPEC)
