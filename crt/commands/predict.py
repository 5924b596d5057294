"""`crt predict`: class, abstention and certified radius of image files."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from crt.certification.certificate import Certificate
from crt.certification.smoothing import SmoothedClassifier
from crt.certification.votes import Precision
from crt.devices import choose_device
from crt.drops.images import decode_image
from crt.drops.layout import first_ten
from crt.errors import UserError
from crt.models.checkpoint import load_model
from crt.spec import to_unit


def predict(
    images: Sequence[Path],
    model: Path,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    radii: Sequence[float] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    compile: bool = False,  # noqa: A002
    json_lines: bool = False,
) -> None:
    """Print what the smoothed model says of each image file, in the order given, each line as soon as it is known.

    The model is smoothed with the sigma it was trained with, and the files are brought to its format as its test set was.
    radii: None for exact certification, else the l2 radii ([0,1] pixel units) to decide with fewer draws.

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
        seed=seed,
        device=place,
        precision=precision,
        compile=compile,
    )
    classes = info.spec.classes
    pixels = [to_unit(decode_image(path, info.spec)) for path in images]  # all, before the first is certified
    certificates = in_turn(
        (number, certificate)
        for number, certificate, _ in smoothed.certify_each((image, None) for image in pixels)
    )
    width = max([len("image"), *(len(str(path)) for path in images)])
    names = max([len("(abstains)"), *(len(name) for name in classes)])
    if not json_lines:
        print(f"{'image':{width}}  {'class':{names}}  radius (l2, sigma {info.sigma:g}, alpha {alpha:g})")
    for path, certificate in zip(images, certificates, strict=True):
        name = classes[certificate.predict] if certificate.status == "certified" else None
        if json_lines:
            line = json.dumps(as_json(path, name, certificate, info.sigma, alpha), ensure_ascii=False)
        else:
            radius = "" if name is None else f"{certificate.radius:.4f}"
            line = f"{path!s:{width}}  {name or '(abstains)':{names}}  {radius}".rstrip()
        print(line, flush=True)


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
