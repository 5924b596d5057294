"""Our model folder: `model.safetensors` (weights and buffers), `model.json` (the rest). No pickles."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import crt
from crt.errors import DamagedFileError, MissingFileError
from crt.files import replacing
from crt.models.build import BaseClassifier, build_model
from crt.spec import RESIZES, ImageSpec

FORMAT = 1
WEIGHTS = "model.safetensors"
INFO = "model.json"


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model besides its weights.

    Attributes:
        arch: The network's name, see `build_model`.
        arch_args: Its arguments, see `build_model`.
        spec: What its images are, and how image files are brought there.
        mean: Per channel, of [0,1] pixels.
        std: Per channel, of [0,1] pixels.
        sigma: Standard deviation of the training noise, [0,1] pixel units.
        method: The training method, or `published` for a model of others.
        data_fingerprint: Of the training data; `unknown` for a published model.
        teacher_fingerprint: Of the teacher's folder; None: trained without one.
        seed: Of the training; None if unknown.
        versions: Of the packages that trained it.
        source: For a fetched model, its reference, its SHA-256 and what it was recognized as.
        init_fingerprint: Of the model whose weights training started from; None: random ones.
    """

    arch: str
    arch_args: dict[str, Any]
    spec: ImageSpec
    mean: list[float]
    std: list[float]
    sigma: float
    method: str
    data_fingerprint: str
    teacher_fingerprint: str | None
    seed: int | None
    versions: dict[str, str]
    source: dict[str, str] | None = None
    init_fingerprint: str | None = None

    def to_json(self) -> str:
        """The text of `model.json`."""
        values = asdict(self)
        spec = values.pop("spec")
        values |= {"format": FORMAT, "image_size": spec.pop("size"), **spec}
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> "ModelInfo":
        """Read `to_json`'s text.

        Args:
            text: What the file holds.
            path: The file, named in errors.

        Raises:
            DamagedFileError: No JSON, another format version, missing or unknown keys, or a value that no
                model has.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DamagedFileError(f"{path} is not JSON ({error}): get the model again", path) from None
        found = values.pop("format", None) if isinstance(values, dict) else None
        if found != FORMAT:
            raise DamagedFileError(
                f"{path} has format {found!r} but this version reads format {FORMAT}: "
                "train the model again or use the version of this package that wrote it",
                path,
            )
        needed = _VALUES.keys() - {"source", "init_fingerprint"}
        if not needed <= values.keys() <= _VALUES.keys():
            lacking, unknown = sorted(needed - values.keys()), sorted(values.keys() - _VALUES.keys())
            raise DamagedFileError(
                f"{path} lacks {lacking} and has unknown {unknown}: get the model again", path
            )
        for key, value in values.items():
            is_right, right = _VALUES[key]
            if not is_right(value):
                raise DamagedFileError(
                    f"{path} is damaged ({key} is {json.dumps(value)[:100]}, not {right}): "
                    "get the model again",
                    path,
                )
        spec = ImageSpec(
            tuple(values.pop("classes")),
            values.pop("image_size"),
            values.pop("channels"),
            values.pop("resize"),
        )
        return cls(spec=spec, **values)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e300  # not NaN or infinite


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) > 0 and all(map(is_right, value))


def _is_whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


_TEXT = (_is_text, "text")
_TEXT_OR_NONE = (_is_text_or_none, "text or null")
_NUMBERS = (_is_list_of(_is_number), "a list of numbers")

# What model.json holds besides its format: whether a value is right, and what is right.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "arch": _TEXT,
    "arch_args": (lambda value: isinstance(value, dict), "a mapping"),
    "classes": (_is_list_of(_is_text), "a list of names"),
    "image_size": (_is_whole(1, 2048), "a whole number from 1 to 2048"),
    "channels": (_is_whole(1, 16), "a whole number from 1 to 16"),
    "resize": (lambda value: value in RESIZES, f"one of {', '.join(RESIZES)}"),
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "sigma": (lambda value: _is_number(value) and value > 0, "a positive number"),
    "method": _TEXT,
    "data_fingerprint": _TEXT,
    "teacher_fingerprint": _TEXT_OR_NONE,
    "seed": (lambda value: value is None or type(value) is int, "a whole number or null"),
    "versions": (_is_text_by_name, "texts by name"),
    "source": (lambda value: value is None or _is_text_by_name(value), "texts by name, or null"),
    "init_fingerprint": _TEXT_OR_NONE,
}


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what training computes."""
    return {"crt": crt.__version__, "timm": version("timm"), "torch": version("torch")}


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


def load_model(folder: str | Path) -> tuple[BaseClassifier, ModelInfo]:
    """Read a model folder: the base classifier, on the CPU and in eval mode, and its description.

    Example:
        >>> from crt import SmoothedClassifier, load_model
        >>> model, info = load_model("models/student")
        >>> info.spec.shape, info.sigma
        ((1, 8, 8), 0.25)
        >>> smoothed = SmoothedClassifier(model, info.sigma)

    Raises:
        MissingFileError: A file of the folder is not there.
        DamagedFileError: A file is damaged, or weights and architecture do not fit each other.
    """
    folder = Path(folder)
    weights = folder / WEIGHTS
    info = load_info(folder)
    try:
        tensors = load_file(weights)
    except FileNotFoundError:
        raise MissingFileError(f"{weights} is missing: get the model again", folder) from None
    except SafetensorError as error:
        raise DamagedFileError(f"{weights} is damaged ({error}): get the model again", folder) from None
    model = build_model(info.arch, info.spec, info.arch_args, info.mean, info.std)
    differences = misfit(model.state_dict(), tensors)
    if differences:
        listed = "\n  ".join(differences)
        raise DamagedFileError(
            f"{weights} does not fit its architecture {info.arch}: get the model again\n  {listed}", folder
        )
    model.load_state_dict(tensors)
    return model.eval(), info


def load_info(folder: Path) -> ModelInfo:
    """The description alone: reads `model.json`, builds nothing.

    Raises:
        MissingFileError: It is not there.
        DamagedFileError: It is damaged or of another format.
    """
    path = folder / INFO
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path} is not text ({error.reason}): get the model again", folder) from None
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{folder} holds no {INFO}: name a model folder", folder) from None
    return ModelInfo.from_json(text, path)


def model_fingerprint(folder: Path) -> str:
    """SHA-256, hex, of the weights' bytes and the architecture, which decide what a model computes."""
    info = load_info(folder)
    architecture = [info.arch, info.arch_args, len(info.spec.classes), info.spec.channels, info.spec.size]
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
