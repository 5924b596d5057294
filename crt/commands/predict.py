"""`crt predict`: class, abstention and certified radius of image files."""

import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path

from crt.certification.certificate import Certificate
from crt.certification.smoothing import SmoothedClassifier
from crt.certification.votes import Precision
from crt.devices import choose_device
from crt.drops.images import decode_image
from crt.drops.layout import first_ten
from crt.errors import UserError
from crt.models.checkpoint import load_model


def predict(
    images: Sequence[Path],
    model: Path,
    *,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    radii: Sequence[float] | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: Precision = "float32",
    compile: bool = False,  # noqa: A002
    batch_size: int | None = None,
    json_lines: bool = False,
) -> None:
    """Print what the smoothed model says of each image file, in the order given, each line as soon as it is known.

    The model is smoothed with the sigma it was trained with, and the files are brought to its format as its test set was.
    radii: None for exact certification, else the l2 radii ([0,1] pixel units) to decide with fewer draws. seed: None for a
    fresh secret one, which is printed, so that the answers can be checked later. precision, compile and batch_size: as the
    model was certified. Radii are printed rounded down.

    Raises:
        UserError: no model, an image that cannot be read or does not fit, or numbers that cannot certify anything.
    """
    if missing := [str(path) for path in images if not path.is_file()]:
        raise UserError(f"no such image file: {first_ten(missing)}")
    place = choose_device(device)
    classifier, info = load_model(model)
    smoothed = SmoothedClassifier(
        classifier,
        info.sigma,
        n0=n0,
        n=n,
        alpha=alpha,
        radii=radii,
        seed=secrets.randbits(128) if seed is None else seed,
        device=place,
        precision=precision,
        compile=compile,
        batch_size=batch_size,
    )
    classes = info.spec.classes
    pixels = [decode_image(path, info.spec) for path in images]  # all, before the first is certified
    certificates = in_turn(
        (number, certificate)
        for number, certificate, _ in smoothed.certify_pixels((image, None) for image in pixels)
    )
    noise = f"{smoothed.seed:#x}"
    width = max([len("image"), *(len(str(path)) for path in images)])
    names = max([len("(abstains)"), *(len(name) for name in classes)])
    if not json_lines:
        terms = f"l2, sigma {info.sigma:g}, alpha {alpha:g}, noise seed {noise}"
        print(f"{'image':{width}}  {'class':{names}}  radius ({terms})")
    for path, certificate in zip(images, certificates, strict=True):
        name = classes[certificate.predict] if certificate.status == "certified" else None
        if json_lines:
            line = json.dumps(
                as_json(path, name, certificate, info.sigma, alpha) | {"seed": noise}, ensure_ascii=False
            )
        else:
            radius = "" if name is None else down(certificate.radius or 0.0)
            line = f"{path!s:{width}}  {name or '(abstains)':{names}}  {radius}".rstrip()
        print(line, flush=True)


def down(radius: float) -> str:
    """A radius with four digits behind the point, never more than it is."""
    return str(Decimal(radius).quantize(Decimal("0.0001"), ROUND_FLOOR))


def as_json(
    path: Path, name: str | None, certificate: Certificate, sigma: float, alpha: float
) -> dict[str, object]:
    """One line's content; class and radius are null where the classifier abstains."""
    return {
        "image": str(path),
        "class": name,
        "radius": None if name is None else certificate.radius,
        "p_lower": certificate.p_lower,
        "n_a": certificate.n_a,
        "n": certificate.n,
        "sigma": sigma,
        "alpha": alpha,
    }


def in_turn(results: Iterable[tuple[int, Certificate]]) -> Iterator[Certificate]:
    """Numbered results by number, each as soon as all before it are there."""
    waiting: dict[int, Certificate] = {}
    turn = 0
    for number, result in results:
        waiting[number] = result
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1
