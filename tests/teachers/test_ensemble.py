"""An ensemble is a base classifier: the mean of its members' logits, in the one model folder."""

import re
from dataclasses import replace

import pytest
import torch
from model_folders import make_model
from published_files import CIFAR10, lively

from crt.certification.smoothing import SmoothedClassifier
from crt.errors import UserError
from crt.inference.fold import fold_batchnorm
from crt.models.checkpoint import load_info, load_model, model_fingerprint, save_model
from crt.spec import ImageSpec
from crt.teachers.ensemble import combine

IMAGES = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255


SPEC = ImageSpec(tuple("abcd"), size=16, channels=3)


def member(arch: str, seed: int, mean, std, method="gaussian"):
    model, info = make_model(SPEC, seed, arch=arch, mean=list(mean), std=list(std), method=method)
    lively(model, seed)
    return model.eval(), info


@pytest.fixture(scope="module")
def members():
    return [
        member("cifar_resnet20", 0, *CIFAR10),
        member("cifar_resnet32", 1, (0.0,) * 3, (1.0,) * 3, method="macer"),
        member("resnet10t", 2, (0.5,) * 3, (0.25,) * 3),
    ]


def mean_logits(members):
    with torch.no_grad():
        return sum(model(IMAGES) for model, _ in members) / len(members)


def test_logits_are_the_mean_of_the_members(members):
    model, info = combine(members)
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), mean_logits(members), atol=1e-6)
    assert (info.arch, info.method, info.sigma, info.spec) == (
        "ensemble",
        "gaussian+macer",
        0.25,
        SPEC,
    )
    assert (info.mean, info.std) == ([0.0] * 3, [1.0] * 3)
    assert info.data_fingerprint == "d"


def test_the_model_folder_gives_it_back(members, tmp_path):
    save_model(tmp_path / "teacher", *combine(members))
    model, info = load_model(tmp_path / "teacher")
    assert [m["arch"] for m in info.arch_args["members"]] == ["cifar_resnet20", "cifar_resnet32", "resnet10t"]
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), mean_logits(members), atol=1e-6)
    assert sorted(p.name for p in (tmp_path / "teacher").iterdir()) == ["model.json", "model.safetensors"]


def test_its_fingerprint_is_its_members(members, tmp_path):
    save_model(tmp_path / "a", *combine(members[:2]))
    save_model(tmp_path / "b", *combine(members[1::-1]))
    save_model(tmp_path / "c", *combine([members[0], member("cifar_resnet32", 9, (0.0,) * 3, (1.0,) * 3)]))
    assert len({model_fingerprint(tmp_path / name) for name in "abc"}) == 3


@pytest.mark.slow
def test_it_is_certified_like_any_classifier(members):
    model, _ = combine(members)
    folded = fold_batchnorm(model)
    with torch.no_grad():
        assert torch.allclose(folded(IMAGES), model(IMAGES), atol=1e-4)
    assert not any("BatchNorm" in type(m).__name__ for m in folded.modules())
    certificates = SmoothedClassifier(model, 0.25, n0=4, n=16).certify(IMAGES[:2])
    assert len(certificates) == 2


def test_an_ensemble_of_ensembles(members):
    pair = combine(members[:2])
    model, _ = combine([pair, members[2]])
    with torch.no_grad():
        expected = (mean_logits(members[:2]) + members[2][0](IMAGES)) / 2
        assert torch.allclose(model(IMAGES), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spec": replace(SPEC, classes=tuple("abdc"))}, "class 2 ('d' and 'c')"),
        ({"spec": replace(SPEC, size=32)}, "image size (32 and 16)"),
        ({"spec": replace(SPEC, channels=1)}, "channels (1 and 3)"),
        ({"spec": replace(SPEC, resize="crop")}, "resize (crop and none)"),
        ({"sigma": 0.5}, "sigma (0.5 and 0.25)"),
    ],
)
def test_members_must_agree(members, changes, said):
    other = members[1][0], replace(members[1][1], **changes)
    message = f"member 2 and member 1 of the ensemble differ in {said}: take members that agree"
    with pytest.raises(UserError, match=re.escape(message)):
        combine([members[0], other])


def test_members_of_different_data_have_a_joint_fingerprint(members):
    other = members[1][0], replace(members[1][1], data_fingerprint="e")
    _, info = combine([members[0], other])
    assert info.data_fingerprint not in ("d", "e")
    assert len(info.data_fingerprint) == 64


def test_a_cifar_ensemble_is_described_without_timm(members, tmp_path):
    save_model(tmp_path / "a", *combine(members[:2]))
    assert load_info(tmp_path / "a").arch == "ensemble"
