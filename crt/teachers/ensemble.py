"""Several base classifiers as one: the mean of their logits (Horvath et al. 2022)."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace

from crt.models.build import ENSEMBLE, BaseClassifier, build_model
from crt.models.checkpoint import ModelInfo
from crt.spec import check_fits, check_same

_MEMBER = ("arch", "arch_args", "mean", "std")


def combine(members: Sequence[tuple[BaseClassifier, ModelInfo]]) -> tuple[BaseClassifier, ModelInfo]:
    """The ensemble, in eval mode, and its description: a base classifier whose front layer is the identity.

    Raises:
        UserError: Members are of other classes, image sizes, noise or resizing.
    """
    first = members[0][1]
    for place, (_, info) in enumerate(members[1:], 2):
        names = f"member {place}", "member 1 of the ensemble"
        remedy = "take members that agree"
        check_fits(names[0], info.spec, names[1], first.spec, remedy, resize=True)
        check_same(names[0], info.sigma, names[1], first.sigma, "sigma", remedy)
    infos = [info for _, info in members]
    info = replace(
        first,
        arch=ENSEMBLE,
        arch_args={"members": [{name: asdict(member)[name] for name in _MEMBER} for member in infos]},
        mean=[0.0] * first.spec.channels,
        std=[1.0] * first.spec.channels,
        method="+".join(sorted({member.method for member in infos})),
        data_fingerprint=_joint([member.data_fingerprint for member in infos]),
        teacher_fingerprint=None,
    )
    model = build_model(info.arch, info.spec, info.arch_args)
    for target, (source, _) in zip(model.network.members, members, strict=True):  # type: ignore[arg-type]
        target.load_state_dict(source.state_dict())
    return model.eval(), info


def _joint(fingerprints: Sequence[str]) -> str:
    """One fingerprint for all: their own, if they have the same."""
    if len(set(fingerprints)) == 1:
        return fingerprints[0]
    return hashlib.sha256("".join(fingerprints).encode()).hexdigest()
