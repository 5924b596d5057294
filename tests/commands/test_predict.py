"""`crt predict` on image files and a saved model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import write_model
from PIL import Image

from crt.certification.certificate import ABSTAIN, Certificate
from crt.certification.smoothing import SmoothedClassifier
from crt.commands.predict import in_turn, predict
from crt.errors import UserError
from crt.models.checkpoint import load_model
from crt.spec import ImageSpec, to_unit

SIZE, CLASSES = 8, ("cat", "a longer name", "ü")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and image files beside it."""
    folder = tmp_path_factory.mktemp("predict")
    write_model(folder / "model", ImageSpec(CLASSES, SIZE, channels=3, resize="crop"))
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / "large.png")
    return folder


def test_json_lines_are_the_certificates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [folder / f"{number}.png" for number in (3, 0, 1, 2)]
    predict(paths, folder / "model", n=200, alpha=0.05, seed=5, device="cpu", json_lines=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model, info = load_model(folder / "model")
    images = torch.stack([to_unit(np.asarray(Image.open(path))) for path in paths])
    expected = SmoothedClassifier(model, info.sigma, n=200, alpha=0.05, seed=5).certify(images)
    for path, line, certificate in zip(paths, lines, expected, strict=True):
        assert line["image"] == str(path)
        assert line["class"] == (None if certificate.predict == ABSTAIN else CLASSES[certificate.predict])
        assert line["radius"] == (None if certificate.predict == ABSTAIN else certificate.radius)
        assert (line["n_a"], line["n"], line["p_lower"]) == (certificate.n_a, 200, certificate.p_lower)
        assert (line["sigma"], line["alpha"], line["seed"]) == (0.25, 0.05, "0x5")


def test_the_table_is_aligned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [folder / "0.png", folder / "large.png"]
    predict(paths, folder / "model", n=200, device="cpu")
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["image", "class", "radius"]
    assert "sigma 0.25, alpha 0.001" in header
    assert [line.split()[0] for line in lines] == [str(path) for path in paths]
    start = header.index("class")
    for line in lines:
        assert line[start - 2 : start] == "  "
        assert any(line[start:].startswith(name) for name in (*CLASSES, "(abstains)"))


@pytest.mark.parametrize(
    ("name", "message"), [("missing.png", "missing.png"), ("model/model.json", "not an image")]
)
def test_bad_images_are_named_before_anything_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predict([folder / "0.png", folder / name], folder / "model", n=200, device="cpu")
    assert capsys.readouterr().out == ""


def test_missing_images_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such image file, check the path: .*gone\.png$"):
        predict([tmp_path / "gone.png"], folder)


def test_no_model_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model\.json"):
        predict([folder / "0.png"], folder / "nothing", device="cpu")


def test_too_few_draws_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="n=5 is too small"):
        predict([folder / "0.png"], folder / "model", n=5, device="cpu")


def test_results_wait_for_their_turn() -> None:
    certificates = {number: Certificate(number, 0.0, 1, 1, 1, 0.5, "certified") for number in range(4)}
    seen = []

    def results():
        for number in (1, 0, 3, 2):
            seen.append(number)
            yield number, certificates[number]

    turns = in_turn(results())
    assert next(turns).predict == 0
    assert seen == [1, 0]
    assert [certificate.predict for certificate in turns] == [1, 2, 3]


def test_the_noise_is_secret_and_can_be_checked_later(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines(seed: int | None) -> list[dict[str, object]]:
        predict(
            [folder / "0.png", folder / "1.png"],
            folder / "model",
            n=400,
            seed=seed,
            device="cpu",
            json_lines=True,
        )
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    first, second = lines(None), lines(None)
    seeds = {str(line["seed"]) for line in first + second}
    assert len(seeds) == 2  # one for each call
    assert min(int(seed, 0) for seed in seeds).bit_length() > 90
    assert lines(int(str(first[0]["seed"]), 0)) == first


def test_a_radius_is_never_printed_larger_than_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [folder / f"{number}.png" for number in range(4)]
    how = {"n": 400, "seed": 1, "device": "cpu"}
    predict(paths, folder / "model", **how)
    shown = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]]
    predict(paths, folder / "model", **how, json_lines=True)
    radii = [json.loads(line)["radius"] for line in capsys.readouterr().out.splitlines()]
    assert any(radii)
    for text, radius in zip(shown, radii, strict=True):
        if radius is not None:
            assert float(text) <= radius < float(text) + 0.0001
