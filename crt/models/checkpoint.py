"""Our model folder: `model.safetensors` (weights and buffers) and `model.json` (all else). Nothing is pickled."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crt.errors import UserError
from crt.models.build import BaseClassifier, build_model

FORMAT = 1
WEIGHTS = "model.safetensors"
INFO = "model.json"


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model besides its weights.

    image_size: pixels; mean, std: per channel, of [0,1] pixels; resize: how images were brought to that size;
    sigma: the training noise's standard deviation, [0,1] pixel units; the fingerprints name the data and the teacher
    (None: trained without one); versions: of the packages that trained it.
    """

    format: int
    arch: str
    arch_args: dict[str, Any]
    classes: list[str]
    image_size: int
    channels: int
    mean: list[float]
    std: list[float]
    resize: str
    sigma: float
    method: str
    data_fingerprint: str
    teacher_fingerprint: str | None
    seed: int
    versions: dict[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "ModelInfo":
        """Read `to_json`'s text; `source` names it in errors.

        Raises:
            UserError: no JSON, another format version, or missing or unknown keys.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise UserError(f"{source} is not JSON ({error}): get the model again") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else None
            raise UserError(
                f"{source} has format {found!r} but this version reads format {FORMAT}: "
                "train the model again or use the version of crt that wrote it"
            )
        known = {field.name for field in fields(cls)}
        if known != set(raw):
            raise UserError(
                f"{source} lacks {sorted(known - set(raw))} and has unknown {sorted(set(raw) - known)}: get it again"
            )
        return cls(**raw)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what training computes."""
    return {name: version(name) for name in ("crt", "timm", "torch")}


def save_model(folder: Path, model: BaseClassifier, info: ModelInfo) -> None:
    """Write the model folder aside and rename it; one that is there is replaced.

    The bytes of `model.safetensors` depend on the weights alone, not on their device or memory format.
    """
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, aside / WEIGHTS)
    (aside / INFO).write_text(info.to_json(), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(aside, folder)


def load_model(folder: Path, device: str | torch.device = "cpu") -> tuple[BaseClassifier, ModelInfo]:
    """The base classifier, in eval mode, and its description.

    Raises:
        UserError: files are missing or damaged, or weights and architecture do not fit each other.
    """
    info = load_info(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise UserError(
            f"{folder / WEIGHTS} is missing: get the model again (`dvc repro` or `dvc pull`)"
        ) from None
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged ({error}): get the model again") from None
    model = build_model(
        info.arch, info.arch_args, len(info.classes), info.channels, info.image_size, info.mean, info.std
    )
    differences = _differences(model.state_dict(), tensors)
    if differences:
        more = len(differences) - 9
        shown = differences if len(differences) <= 10 else [*differences[:9], f"and {more} more"]
        raise UserError(
            f"{folder / WEIGHTS} does not fit its architecture {info.arch}: get the model again\n  "
            + "\n  ".join(shown)
        )
    model.load_state_dict(tensors)
    return model.to(device).eval(), info


def load_info(folder: Path) -> ModelInfo:
    """The description alone: reads `model.json`, builds nothing.

    Raises:
        UserError: it is missing, damaged or of another format.
    """
    try:
        text = (folder / INFO).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no {INFO}: make the model first (`dvc repro`) or `dvc pull` it"
        ) from None
    return ModelInfo.from_json(text, str(folder / INFO))


def model_fingerprint(folder: Path) -> str:
    """SHA-256, hex, of the weights' bytes and the architecture: what decides the function that a model computes."""
    info = load_info(folder)
    architecture = [info.arch, info.arch_args, len(info.classes), info.channels, info.image_size]
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    with (folder / WEIGHTS).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is surplus" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        wanted, got = expected[name], found[name]
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            lines.append(
                f"{name} is {got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
            )
    return sorted(lines)
