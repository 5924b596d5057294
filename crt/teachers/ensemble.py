"""Several base classifiers as one: the mean of their logits (Horvath et al. 2022)."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace

from crt.errors import UserError
from crt.models.build import ENSEMBLE, BaseClassifier, build_model
from crt.models.checkpoint import ModelInfo

_SHARED = ("classes", "image_size", "channels", "sigma", "resize")
_MEMBER = ("arch", "arch_args", "mean", "std")


def combine(members: Sequence[tuple[BaseClassifier, ModelInfo]]) -> tuple[BaseClassifier, ModelInfo]:
    """The ensemble, in eval mode, and its description: a base classifier like any other, with a front layer that is the identity.

    Raises:
        UserError: members are of other classes, image sizes, noise or resizing.
    """
    first = members[0][1]
    for place, (_, info) in enumerate(members[1:], 2):
        for name in _SHARED:
            if getattr(info, name) != getattr(first, name):
                raise UserError(
                    f"member {place} of the ensemble has {name} {getattr(info, name)} and member 1 has "
                    f"{getattr(first, name)}: take members that agree"
                )
    infos = [info for _, info in members]
    info = replace(
        first,
        arch=ENSEMBLE,
        arch_args={"members": [{name: asdict(member)[name] for name in _MEMBER} for member in infos]},
        mean=[0.0] * first.channels,
        std=[1.0] * first.channels,
        method="+".join(sorted({member.method for member in infos})),
        data_fingerprint=_joint([member.data_fingerprint for member in infos]),
        teacher_fingerprint=None,
    )
    model = build_model(
        info.arch, info.arch_args, len(info.classes), info.channels, info.image_size, info.mean, info.std
    )
    for target, (source, _) in zip(model.network.members, members, strict=True):  # type: ignore[arg-type]
        target.load_state_dict(source.state_dict())
    return model.eval(), info


def _joint(fingerprints: Sequence[str]) -> str:
    """One fingerprint for all: their own, if they have the same."""
    if len(set(fingerprints)) == 1:
        return fingerprints[0]
    return hashlib.sha256("".join(fingerprints).encode()).hexdigest()
