from pathlib import Path

from crt.commands.decidable import certified_images, decidable_sentence
from crt.project import Project

CONFIG = Project(Path(__file__).resolve().parents[2]).params


def gate(margin):
    return CONFIG.gate.model_copy(update={"margin": margin})


def test_enough_images_are_said_to_be_enough():
    said = decidable_sentence(500, gate(0.075))
    assert said.startswith("the gate can decide a loss of 5.")
    assert said.endswith("gate.margin is 7.5")


def test_too_few_images_are_named_with_the_remedy():
    said = decidable_sentence(190, gate(0.02))
    assert "on 190 test images" in said
    assert "gate.margin is 2, so most verdicts would be undecided: add test images" in said


def test_the_images_that_are_certified_count():
    options = CONFIG.certify.model_copy(update={"stride": 20, "max_images": None})
    assert certified_images(10_000, options) == 500
    assert certified_images(10_001, options) == 501
    assert certified_images(10_000, options.model_copy(update={"max_images": 100})) == 100
