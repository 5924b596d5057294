"""`crt predict`: class, abstention and certified radius of image files."""

import json
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crt.certification.certificate import Certificate
from crt.certification.smoothing import SmoothedClassifier
from crt.certification.votes import Precision
from crt.commands.abstentions import warning
from crt.devices import choose_device
from crt.drops.images import decode_image, pixel_hash
from crt.errors import UserError, first_ten
from crt.models.checkpoint import load_model
from crt.report import formats


def predict(
    images: Sequence[Path],
    model: Path,
    *,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    seed: int | None = None,
    device: str = "auto",
    precision: Precision = "float32",
    compile: bool = False,  # noqa: A002
    batch_size: int | None = None,
    json_lines: bool = False,
) -> None:
    """Print what the smoothed model says of each image file, in the order given, as soon as it is known.

    The model is smoothed with the sigma that it was trained with, and the files are brought to its format as
    its test set was. Radii are printed rounded down. A warning follows on standard error where the last
    1,000 images abstain more or less often than the test set's.

    Args:
        images: The image files.
        model: The model folder.
        n0: Noise draws that select the class.
        n: Noise draws that estimate its probability.
        alpha: Chance of a false certificate, per image.
        seed: Of the noise; None: a fresh secret one. It is printed, so that the answers can be checked later.
        device: auto, cpu, mps, cuda or cuda:<number>.
        precision: As the model was certified.
        compile: As the model was certified.
        batch_size: As the model was certified; None: chosen from device and image.
        json_lines: One JSON object per line, in place of a table.

    Raises:
        UserError: No model, an image that cannot be read or does not fit, or numbers that cannot certify
            anything.
    """
    if missing := [str(path) for path in images if not path.is_file()]:
        raise UserError(f"no such image file, check the path: {first_ten(missing)}")
    place = choose_device(device)
    network, info = load_model(model)
    smoothed = SmoothedClassifier(
        network,
        info.sigma,
        n0=n0,
        n=n,
        alpha=alpha,
        seed=secrets.randbits(128) if seed is None else seed,
        device=place,
        precision=precision,
        compile=compile,
        batch_size=batch_size,
    )
    pixels = [decode_image(path, info.spec) for path in images]  # all, before the first is certified
    facts = {"sigma": info.sigma, "alpha": alpha, "seed": f"{smoothed.seed:#x}"}
    abstained = _print(images, smoothed, pixels, info.spec.classes, facts, json_lines)
    if said := warning(model, dict(zip(map(pixel_hash, pixels), abstained, strict=True)), n, alpha):
        print(said, file=sys.stderr)


def _print(
    images: Sequence[Path],
    smoothed: SmoothedClassifier,
    pixels: Sequence[np.ndarray],
    classes: Sequence[str],
    facts: dict[str, Any],
    json_lines: bool,
) -> list[bool]:
    """Certify the images, print each answer as soon as it is known, and return which of them abstain."""
    abstained: list[bool] = []

    def noted() -> Iterator[Certificate]:
        results = smoothed.certify_pixels((image, None) for image in pixels)
        for certificate in in_turn((number, certificate) for number, certificate, _ in results):
            abstained.append(certificate.status == "abstained")
            yield certificate

    for line in (_json if json_lines else _table)(images, noted(), classes, facts):
        print(line, flush=True)
    return abstained


def _json(
    images: Sequence[Path],
    certificates: Iterator[Certificate],
    classes: Sequence[str],
    facts: dict[str, Any],
) -> Iterator[str]:
    """One object per image; class and radius are null where the classifier abstains."""
    for path, certificate in zip(images, certificates, strict=True):
        certified = certificate.status == "certified"
        found = {
            "image": str(path),
            "class": classes[certificate.predict] if certified else None,
            "radius": certificate.radius if certified else None,
            "p_lower": certificate.p_lower,
            "n_a": certificate.n_a,
            "n": certificate.n,
        }
        yield json.dumps(found | facts, ensure_ascii=False)


def _table(
    images: Sequence[Path],
    certificates: Iterator[Certificate],
    classes: Sequence[str],
    facts: dict[str, Any],
) -> Iterator[str]:
    """A header, and one line per image."""
    width = max(len("image"), *(len(str(path)) for path in images))
    names = max(len("(abstains)"), *(len(name) for name in classes))
    terms = f"l2, sigma {facts['sigma']:g}, alpha {facts['alpha']:g}, noise seed {facts['seed']}"
    yield f"{'image':{width}}  {'class':{names}}  radius ({terms})"
    for path, certificate in zip(images, certificates, strict=True):
        name, radius = "(abstains)", ""
        if certificate.status == "certified":
            name, radius = classes[certificate.predict], formats.radius(certificate.radius, digits=4)
        yield f"{path!s:{width}}  {name:{names}}  {radius}".rstrip()


def in_turn(results: Iterable[tuple[int, Certificate]]) -> Iterator[Certificate]:
    """Numbered results by number, each as soon as all before it are there."""
    waiting: dict[int, Certificate] = {}
    turn = 0
    for number, result in results:
        waiting[number] = result
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1
