"""Our model folder: `model.safetensors` (weights and buffers) and `model.json` (all else). Nothing is pickled."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crt.errors import UserError
from crt.files import replacing
from crt.models.build import BaseClassifier, build_model

FORMAT = 1
WEIGHTS = "model.safetensors"
INFO = "model.json"

Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model besides its weights.

    image_size: pixels; mean, std: per channel, of [0,1] pixels; resize: how images were brought to that size;
    sigma: the training noise's standard deviation, [0,1] pixel units; the fingerprints name the data (`unknown` for a
    published model) and the teacher (None: trained without one); seed: None if unknown; versions: of the packages that
    trained it; source: for a fetched model, its reference, SHA-256 and what it was recognised as;
    init_fingerprint: of the model whose weights training started from (None: random ones).
    """

    format: int
    arch: str
    arch_args: dict[str, Any]
    classes: Annotated[list[str], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1, le=2048)]
    channels: Annotated[int, Field(ge=1, le=16)]
    mean: list[Finite]
    std: list[Finite]
    resize: str
    sigma: Annotated[Finite, Field(gt=0)]
    method: str
    data_fingerprint: str
    teacher_fingerprint: str | None
    seed: int | None
    versions: dict[str, str]
    source: dict[str, str] | None = None
    init_fingerprint: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "ModelInfo":
        """Read `to_json`'s text; `source` names it in errors.

        Raises:
            UserError: no JSON, another format version, missing or unknown keys, or a value that no model has.
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
        needed = known - {"source", "init_fingerprint"}
        if not needed <= set(raw) <= known:
            raise UserError(
                f"{source} lacks {sorted(needed - set(raw))} and has unknown {sorted(set(raw) - known)}: get it again"
            )
        try:
            return TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{source} is damaged ({key}: {first['msg']}): get the model again") from None


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what training computes."""
    return {name: version(name) for name in ("crt", "timm", "torch")}


def save_model(folder: Path, model: BaseClassifier, info: ModelInfo) -> None:
    """Write the model folder aside and rename it; one that is there is replaced.

    The bytes of `model.safetensors` depend on the weights alone, not on their device or memory format.
    """
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()
    }
    with replacing(folder) as aside:
        save_file(tensors, aside / WEIGHTS)
        (aside / INFO).write_text(info.to_json(), encoding="utf-8")


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
    differences = misfit(model.state_dict(), tensors)
    if differences:
        raise UserError(
            f"{folder / WEIGHTS} does not fit its architecture {info.arch}: get the model again\n  "
            + "\n  ".join(differences)
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
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / INFO} is not text ({error.reason}): get the model again") from None
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


def misfit(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """How the tensors differ from those expected, in at most ten lines; empty: they fit."""
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is surplus" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        wanted, got = expected[name], found[name]
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            lines.append(
                f"{name} is {got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
            )
    lines.sort()
    return lines if len(lines) <= 10 else [*lines[:9], f"and {len(lines) - 9} more"]
