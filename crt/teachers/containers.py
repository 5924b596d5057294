"""Where in a checkpoint the network's tensors are: which entry of the file, behind which prefix, beside what.

Averaged weights are taken where a file holds them beside the last ones, since their owners evaluate those.
What is not taken is named.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from crt.errors import UserError

AVERAGES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_ema_state_dict", "ema",
    "swa_state_dict", "swa_model", "averaged_model",
)  # fmt: skip
CONTAINERS = ("state_dict", "model_state_dict", "net", "model", "network", "net_state_dict", "weights")
# What stands before the network's own names. A student is taken before its teacher.
_WRAPPERS = ("1.", "module.", "_orig_mod.", "model.", "network.", "net.", "classifier_model.", "student.")
_FRONTS = ("0.", "normalize.", "normalizer.")
_OTHERS = ("teacher.", "ema.", "model_ema.")  # a second network, whose convolutions do not matter


@dataclass(frozen=True)
class State:
    """A network's tensors.

    Attributes:
        tensors: Under the network's own names.
        front: Mean and std of a normalization layer before the network, or None.
        layout: Where they were, in words.
        left_alone: Names of tensors that are no part of the network.
    """

    tensors: dict[str, Tensor]
    front: tuple[list[float], list[float]] | None
    layout: str
    left_alone: list[str]


def find_state(checkpoint: Mapping[str, Any], source: str, entry: str | None = None) -> State:
    """Find the network's tensors.

    Args:
        checkpoint: What the file holds.
        source: The file, named in errors.
        entry: The entry that holds them, or the prefix before their names; None: averaged weights, else the
            usual entries.

    Raises:
        UserError: There is no state dict, or no such entry.
    """
    path, inside, others = _inside(checkpoint, entry)
    tensors = {str(name): value for name, value in inside.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(
            f"{source} holds no state dict (its entries are "
            f"{', '.join(map(str, list(checkpoint)[:5])) or 'none'}): give a file with the network's weights"
        )
    prefix = None if entry is None or entry in path else f"{entry.rstrip('.')}."
    if prefix is not None:
        chosen = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if not chosen:
            known = [*_candidates(checkpoint), *sorted({name.partition(".")[0] for name in tensors})]
            raise UserError(
                f"{source} has no entry and no prefix {entry!r}: "
                f"set teacher.entry to one of {', '.join(known[:10])}, or null"
            )
        others += [
            f"{name.partition('.')[0]}."
            for name in tensors
            if name.startswith(_OTHERS) and not name.startswith(prefix)
        ]
        tensors = chosen
    tensors, unwrapped, front, left = _unwrapped(tensors)
    before = f"{prefix or ''}{unwrapped}"
    layout = f"entry {'.'.join(path)!r}" if path else "a bare state dict"
    layout += f", prefix {before!r}" if before else ", no prefix"
    others += sorted({f"{name.partition('.')[0]}." for name in left if name.startswith(_OTHERS)})
    if others := list(dict.fromkeys(others)):
        layout += f"; not {', '.join(others)}, which teacher.entry would choose"
    return State(tensors, front, layout, [name for name in left if not name.startswith(_OTHERS)])


def _inside(
    checkpoint: Mapping[str, Any], entry: str | None
) -> tuple[list[str], Mapping[str, Any], list[str]]:
    """The path of the entry that holds the tensors, the entry, and the entries that could be meant too."""
    path: list[str] = []
    inside, others = checkpoint, []
    while found := _candidates(inside):
        chosen = entry if entry in found else found[0]
        others += [name for name in found if name != chosen]
        path.append(chosen)
        inside = inside[chosen]
    return path, inside, others


def _candidates(checkpoint: Mapping[str, Any]) -> list[str]:
    """The entries that hold a network's tensors, the first choice first; none: the file has them itself."""
    if any(_is_convolution(value) for value in checkpoint.values()):
        return []
    known = [name for name in (*AVERAGES, *CONTAINERS) if _holds_tensors(checkpoint.get(name))]
    others = [
        str(name) for name, value in checkpoint.items() if name not in known and _holds_convolutions(value)
    ]
    return known + others


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(one, Tensor) or _holds_tensors(one) for one in value.values()
    )


def _holds_convolutions(value: Any) -> bool:
    return isinstance(value, Mapping) and any(_is_convolution(one) for one in value.values())


def _is_convolution(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _unwrapped(
    tensors: dict[str, Tensor],
) -> tuple[dict[str, Tensor], str, tuple[list[float], list[float]] | None, list[str]]:
    """The network's own names; the prefix before them; a layer before it, if there; what is no part of it."""
    prefix, front = "", None
    left: list[str] = []
    while True:
        fronts = {name: t for name, t in tensors.items() if name.startswith(_FRONTS) and t.numel() in (1, 3)}
        rest = {name: tensor for name, tensor in tensors.items() if name not in fronts}
        wrapper = next((one for one in _WRAPPERS if _wraps(one, rest)), None)
        if wrapper is None:
            return tensors, prefix, front, left
        if fronts:
            front = _mean_and_std(fronts)
        left += [name for name in rest if not name.startswith(wrapper)]
        tensors = {name.removeprefix(wrapper): t for name, t in rest.items() if name.startswith(wrapper)}
        prefix += wrapper


def _wraps(wrapper: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a network is behind the prefix and none beside it, but counters, metrics, a loss's weights."""
    behind = [name for name in tensors if name.startswith(wrapper)]
    beside = [
        tensor
        for name, tensor in tensors.items()
        if not name.startswith(wrapper) and not name.startswith(_OTHERS)
    ]
    if not beside:
        return bool(behind)
    return any(tensors[name].ndim == 4 for name in behind) and all(tensor.ndim < 4 for tensor in beside)


def _mean_and_std(front: dict[str, Tensor]) -> tuple[list[float], list[float]] | None:
    def one(pattern: str) -> list[float] | None:
        values = [tensor for name, tensor in front.items() if re.search(pattern, name.rpartition(".")[2])]
        return values[0].flatten().double().tolist() if len(values) == 1 else None

    mean, std = one(r"^(mean|means|mu)$"), one(r"^(std|stds|sd|sds|sigma)$")
    return None if mean is None or std is None else (mean, std)
