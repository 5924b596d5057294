"""Reading a release that somebody else made. Everything in it may be hostile, and nothing of it is executed.

The network is one of timm's by its name with plain arguments, weights are tensors without code, tables are
text. Sizes are checked before anything is read, and the network's shapes against the file of weights before
anything is allocated. No git command runs in the release, DVC does not look at it, and nothing is downloaded.
"""

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from crt.certification import noise
from crt.certification.smoothing import MOST_DRAWS, SmoothedClassifier
from crt.certification.votes import DTYPES, device_name
from crt.devices import choose_device
from crt.errors import UserError
from crt.evaluation.certificates import Certificates, read_certificates
from crt.models.build import ENSEMBLE, BaseClassifier, build_model, check_arch
from crt.models.checkpoint import INFO, WEIGHTS, ModelInfo, load_info, load_model, model_fingerprint

MOST_BYTES = {INFO: 1 << 20, WEIGHTS: 4 << 30, ".tsv": 256 << 20, ".json": 1 << 20}
MOST_ROWS = 1_000_000
MOST_MEMBERS = 16  # of an ensemble
MOST_CHANNELS = 16
MOST_RADII = 64
LARGEST_RADIUS = 1e6
MOST_BATCH = 1 << 16
MOST_BATCH_VALUES = 1 << 28  # numbers in a batch of images, 1 GiB
# Arguments of timm's networks that set sizes. None of them names a file, an address or a piece of code.
ARGUMENTS = frozenset(
    {
        "base_width", "block_config", "cardinality", "channels", "conv_mlp", "depth", "depths", "dims",
        "drop_path_rate", "drop_rate", "embed_dim", "group_size", "growth_rate", "img_size", "kernel_sizes",
        "layers", "ls_init_value", "mlp_ratio", "num_heads", "patch_size", "small_images", "w0", "wa",
        "window_size", "wm",
    }
)  # fmt: skip
LARGEST_ARGUMENT, LONGEST_ARGUMENT = 65536, 64
DEEPEST = 1024  # blocks of a network


@dataclass(frozen=True)
class Release:
    """What is checked: a model and its certificates."""

    model: BaseClassifier
    info: ModelInfo
    certificates: Certificates

    @property
    def settings(self) -> dict[str, Any]:
        """How the certificates say that they were made."""
        return self.certificates.settings

    def smoothed(self, device: str) -> SmoothedClassifier:
        """The classifier that the certificates speak of."""
        said, chosen = self.settings, choose_device(device)
        return SmoothedClassifier(
            self.model,
            said["sigma"],
            n0=said["n0"],
            n=said["n"],
            alpha=said["alpha"],
            radii=said["radii"] if said["mode"] == "adaptive" else None,
            device=chosen,
            precision=said["precision"],
            compile=said["compile"],
            # Elsewhere numbers are rounded differently anyway, and a GPU's batch would take hours on a CPU.
            batch_size=said["batch_size"] if self.made_on(chosen) else None,
        )

    def made_on(self, device: torch.device) -> bool:
        """Whether the certificates say that they were made on this kind of device and version of torch."""
        said = self.settings
        here = (device_name(device), torch.__version__.partition("+")[0])
        return here == (said["device"], str(said["versions"].get("torch")))

    def context(self) -> dict[str, Any]:
        """What the noise of the certificates depends on, beside the pixels."""
        said = self.settings
        keys = ("model_fingerprint", "sigma", "mode", "alpha", "n")
        seed = said["noise"].get("seed")
        return {key: said[key] for key in keys} | ({} if seed is None else {"seed": _seed(seed)})


def open_release(folder: Path, role: str) -> Release:
    """Read `models/<role>` and `certificates/<role>` of a release's folder.

    Raises:
        UserError: A file is missing or too large, the network is none of timm's with plain arguments, the
            weights do not fit it, or the certificates are damaged, of another model or of an older kind.
    """
    try:
        return _read(folder, role)
    except RecursionError:
        raise UserError(f"{folder} has a file of too many nested values: it is no release") from None
    except OverflowError:
        raise UserError(f"{folder} has a number that is too large: it is no release") from None
    except UserError as error:  # other modules name what they found as it stands in the file
        raise UserError(_printable(" ".join(str(error).split()))) from None


def _read(folder: Path, role: str) -> Release:
    model, tsv = folder / "models" / role, folder / "certificates" / f"{role}.tsv"
    for file in (model / INFO, model / WEIGHTS, tsv, tsv.with_suffix(".json")):
        _check_file(file)
    info = load_info(model)
    check_network(info.arch, info.arch_args)
    if not len(info.mean) == len(info.std) == info.spec.channels:
        raise UserError(f"{model / INFO} has no mean and std for each channel: get the release again")
    _check_weights(info, model / WEIGHTS)
    _check_table(tsv)
    certificates = read_certificates(tsv)
    _check_settings(certificates.settings, info, tsv.with_suffix(".json"))
    if (certificates.n > certificates.settings["n"]).any():
        raise UserError(f"{tsv} has rows of more draws than its n: get the release again")
    found, said = model_fingerprint(model), certificates.settings["model_fingerprint"]
    if found != said:
        raise UserError(
            f"the certificates are of another model (fingerprint {said[:12]}) than {model} ({found[:12]}): "
            "get the files of one release"
        )
    return Release(load_model(model)[0], info, certificates)


def check_network(arch: str, arguments: Mapping[str, Any]) -> None:
    """Check that a network is one of timm's or ours by its plain name, with arguments that only set sizes.

    Raises:
        UserError: It is not.
    """
    if arch == ENSEMBLE:
        members = arguments.get("members")
        if not isinstance(members, list) or not 1 <= len(members) <= MOST_MEMBERS or len(arguments) != 1:
            raise UserError(f"the model is an ensemble without a list of 1 to {MOST_MEMBERS} members")
        for member in members:
            if not isinstance(member, dict) or not _is_member(member):
                raise UserError("the model is an ensemble of what is no network")
            check_network(member["arch"], member.get("arch_args") or {})
        return
    if len(arch) > 100 or not arch.replace("_", "").replace(".", "").isalnum():
        raise UserError(f"the model's arch is {plain(arch)!r}: only plain names of timm's networks are built")
    check_arch(arch)
    for name, value in arguments.items():
        if name not in ARGUMENTS:
            raise UserError(
                f"the model's arch_args set {plain(name)!r}: only {', '.join(sorted(ARGUMENTS))} are built"
            )
        values = value if isinstance(value, list) else [value]
        if len(values) > LONGEST_ARGUMENT or not all(map(_is_size, values)):
            raise UserError(
                f"the model's arch_args set {name} to {plain(str(value))}: only numbers from 0 to "
                f"{LARGEST_ARGUMENT}, and lists of at most {LONGEST_ARGUMENT} of them, are built"
            )
        if name in ("depth", "depths", "layers", "block_config") and sum(values) > DEEPEST:
            raise UserError(f"the model's arch_args ask for more than {DEEPEST} blocks")


def plain(text: str) -> str:
    """A text of the release for a terminal: at most 100 characters, none of which controls it."""
    return _printable(text[:100])


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _is_member(member: dict[str, Any]) -> bool:
    """Whether an ensemble's member is a network with nothing but what `build_model` takes."""
    means = [member[key] for key in ("mean", "std") if member.get(key) is not None]
    return (
        member.keys() <= {"arch", "arch_args", "mean", "std"}
        and isinstance(member.get("arch"), str)
        and member["arch"] != ENSEMBLE
        and isinstance(member.get("arch_args") or {}, dict)
        and all(isinstance(mean, list) and len(mean) <= MOST_CHANNELS for mean in means)
        and all(type(v) in (int, float) and abs(v) <= 1e300 for mean in means for v in mean)
    )


def _is_size(value: Any) -> bool:
    return type(value) in (bool, int, float) and 0 <= value <= LARGEST_ARGUMENT


def _check_file(file: Path) -> None:
    """Check that it is a regular file of a size that a release has."""
    try:
        found = file.stat()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}): a release to verify is a folder with "
            "models/<role>/ and certificates/<role>.tsv and .json"
        ) from None
    most = MOST_BYTES.get(file.name) or MOST_BYTES[file.suffix]
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{file} is no regular file: it is not read")
    if found.st_size > most:
        raise UserError(f"{file} has {found.st_size:,} bytes: at most {most:,} are read")


def _check_weights(info: ModelInfo, weights: Path) -> None:
    """Check that the tensors are those of the network, before either takes memory."""
    with torch.device("meta"):
        model = build_model(info.arch, info.spec, info.arch_args, info.mean, info.std)
    expected = model.state_dict()
    # Buffers that are in no file count too, such as the places of attention windows, and types: a file of
    # bytes would grow to four times its size before the comparison of types.
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size > MOST_BYTES[WEIGHTS]:
        raise UserError(f"the network {plain(info.arch)} takes {size:,} bytes: it is not built")
    try:
        with safe_open(weights, framework="pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{weights} is damaged ({plain(str(error))}): get the release again") from None
    if found != {name: list(tensor.shape) for name, tensor in expected.items()}:
        raise UserError(
            f"{weights} does not fit the network {plain(info.arch)} of {INFO}: get the release again"
        )


def _check_table(tsv: Path) -> None:
    """Check header and number of rows before the table is read, which takes many times its size."""
    with tsv.open("rb") as file:
        if file.readline(1000).rstrip(b"\r\n").split(b"\t")[:3] != [b"idx", b"label", b"predict"]:
            raise UserError(f"{tsv} is no table of certificates: get the release again")
        rows = 0
        while block := file.read(1 << 20):
            rows += block.count(b"\n") + block.count(b"\r")
    if rows > 2 * MOST_ROWS:  # lines may end in both
        raise UserError(f"{tsv} has more than {MOST_ROWS:,} rows: it is not read")


def _check_settings(said: Mapping[str, Any], info: ModelInfo, source: Path) -> None:
    """Check what the certificates say of how they were made, so far as it decides what is computed."""
    values = info.spec.channels * info.spec.size**2
    rules: dict[str, Callable[[Any], bool]] = {
        "n0": lambda value: 1 <= value <= MOST_DRAWS,
        "n": lambda value: 1 <= value <= MOST_DRAWS,
        "mode": lambda value: value in ("exact", "adaptive"),
        "sigma": lambda value: 0 < value <= noise.MOST_SIGMA,
        "alpha": lambda value: 0 < value < 1,
        "radii": lambda value: len(value) <= MOST_RADII and all(map(_is_radius, value)),
        "precision": lambda value: value in DTYPES,
        "compile": lambda value: isinstance(value, bool),
        "skip_misclassified": lambda value: isinstance(value, bool),
        "batch_size": lambda value: (
            type(value) is int and 1 <= value <= min(MOST_BATCH, MOST_BATCH_VALUES // values)
        ),
        "device": lambda value: isinstance(value, str),
        "model_fingerprint": lambda value: isinstance(value, str),
        "versions": lambda value: isinstance(value, dict),
    }
    for key, is_right in rules.items():
        if key not in said or not is_right(said[key]):
            raise UserError(f"{source} has no valid {key!r}: get the release again")
    made = said.get("noise")
    if not isinstance(made, dict) or (made.get("kind"), made.get("bits")) != (noise.KIND, noise.BIT_SOURCE):
        raise UserError(f"{source}: the noise is of another kind, from another version: certify again")
    if made.get("seed") is not None:
        _seed(made["seed"])


def _is_radius(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= LARGEST_RADIUS


def _seed(text: Any) -> int:
    """The number of `0x1f, given by hand`."""
    try:
        return int(str(text).partition(",")[0], 16)
    except ValueError:
        raise UserError(f"the certificates' noise has the seed {plain(str(text))!r}, no number") from None
