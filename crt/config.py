"""Typed schema of params.yaml: load and validate.

The schema has no defaults and changes no value: what a stage computes depends on params.yaml alone, which DVC
tracks. That is why a change of this file re-runs no stage (tests/test_config.py holds it to that).
`conf/` is where defaults live; `crt compose` writes params.yaml from it.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from crt.errors import UserError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
# Limits of certification, stated a second time so that they are checked before hours are spent
# (tests/test_config.py).
Sigma = Annotated[float, Field(ge=0.002, le=10, allow_inf_nan=False)]
Draws = Annotated[int, Field(ge=1, le=10_000_000)]
LEAST_ADAPTIVE_ALPHA = 1e-12


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Augment(Section):
    """Random crops, of the zero-padded image or resized, and horizontal flip."""

    crop_padding: Annotated[int, Field(ge=0)]  # pixels on each side
    # Smallest share of the image that a resized crop takes; 1: no resized crops.
    crop_area: Annotated[float, Field(gt=0, le=1)]
    flip: bool

    @model_validator(mode="after")
    def _crops_in_one_way(self) -> "Augment":
        if self.crop_padding and self.crop_area < 1:
            raise ValueError(
                "crop_padding and crop_area are both set: set crop_padding to 0, or crop_area to 1.0"
            )
        return self


class Data(Section):
    """What lies in data/ (conf/choice.yaml) and how it is read (conf/data/)."""

    name: Name
    num_classes: Annotated[int, Field(ge=2)]
    channels: Literal[1, 3]
    image_size: Annotated[int, Field(ge=4, le=2048)]  # height and width, pixels
    drops: Annotated[list[Name], Field(min_length=1)]
    resize: Literal["none", "crop", "squash"]  # none: another size is an error
    skip_unreadable: bool
    near_copies: Literal["list", "drop", "refuse"]  # training images that look like a test image
    # Share of each labeled drop that training leaves out, chosen by content.
    validation: Annotated[float, Field(ge=0, lt=1)]
    augment: Augment

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if len(set(self.drops)) != len(self.drops):
            raise ValueError("drops lists a drop twice: remove one")
        return self


class Gaussian(Section):
    """Cohen et al. 2019: cross-entropy on Gaussian-noised images."""

    name: Literal["gaussian"]


class Consistency(Section):
    """Jeong and Shin 2020: KL of the mean prediction to each noisy prediction, and the mean's entropy."""

    name: Literal["consistency"]
    num_noise: Annotated[int, Field(ge=2)]
    lbd: NonNegative  # weight of the KL term
    eta: NonNegative  # weight of the entropy term


class SmoothAdv(Section):
    """Salman et al. 2019: cross-entropy on noised adversaries of the smoothed classifier."""

    name: Literal["smoothadv"]
    attack: Literal["pgd", "ddn"]
    epsilon: Positive  # l2 norm of the attack, [0,1] pixel units
    steps: Count  # of the attack
    num_noise: Count  # noise draws per image
    warmup_epochs: Annotated[int, Field(ge=0)]  # epochs until epsilon is reached


class Macer(Section):
    """Zhai et al. 2020: cross-entropy of the mean prediction, and a hinge on the certified radius."""

    name: Literal["macer"]
    num_noise: Count  # noise draws per image
    lbd: NonNegative  # weight of the radius term
    gamma: Positive  # hinge; radii above sigma * gamma / 2 are not pushed further
    beta: Positive  # inverse temperature of the radius term
    defer_epochs: Annotated[int, Field(ge=0)]  # epochs trained without the radius term


class SmoothMix(Section):
    """Jeong et al. 2021: between an image and its adversary the label is mixed with the uniform one."""

    name: Literal["smoothmix"]
    num_noise: Count  # noise draws per image
    steps: Count  # of the attack
    step_size: Positive  # l2 length of one step of the attack, [0,1] pixel units
    mix_step: Annotated[int, Field(ge=0)]  # the attack's iterate that mixing starts from; 0: the image
    eta: NonNegative  # weight of the mix term
    warmup_epochs: Annotated[int, Field(ge=0)]  # epochs until eta is reached

    @model_validator(mode="after")
    def _mixes_from_an_iterate(self) -> "SmoothMix":
        if self.mix_step >= self.steps:
            raise ValueError(f"mix_step ({self.mix_step}) must be less than steps ({self.steps}): lower it")
        return self


class Catrs(Section):
    """Jeong et al. 2023: the easiest noises, as many as the confidence allows, or the worst case too."""

    name: Literal["catrs"]
    num_noise: Count  # noise draws per image
    steps: Count  # of the attack on the noise
    epsilon: Positive  # l2 norm of the attack, [0,1] pixel units
    lbd: NonNegative  # weight of the worst-case term
    votes_from: Literal["teacher", "self"]  # whose class frequencies are the worst case's target
    num_votes: Count  # noise draws per image and step that estimate them
    vote_sigma: Positive  # noise of these draws


class Crt(Section):
    """Vaishnavi et al. 2022: match the teacher's logits on noised images."""

    name: Literal["crt"]
    alpha: Share  # weight of the transfer loss; 1 - alpha goes to cross-entropy with the labels
    keep: NonNegative  # weight of the distance to the release that training starts from, where that is right


MethodSettings = Annotated[
    Gaussian | SmoothAdv | Macer | Consistency | SmoothMix | Catrs | Crt, Field(discriminator="name")
]


class Recipe(Section):
    """A network and how it is trained."""

    key: Name  # the option's own name
    arch: str  # a timm model name, or cifar_resnet<depth>
    arch_args: dict[str, Any]  # passed to timm.create_model
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Literal["sgd", "adamw", "lamb", "lion"]  # timm's names
    lr: Positive
    weight_decay: NonNegative
    scheduler: Literal["cosine", "multistep"]
    warmup_epochs: Annotated[int, Field(ge=0)]
    clip_grad: Positive | None  # largest l2 norm of the gradient; null: no clipping

    @model_validator(mode="after")
    def _warmup_ends(self) -> "Recipe":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs}) must be less than epochs ({self.epochs}): lower it, "
                "to 0 for none"
            )
        return self


class TrainedTeacher(Recipe):
    """The robust network that is transferred from."""

    drop: str  # the drop it is trained on
    trained: list[str]  # [drop]: the stage that trains it exists
    fetched: Annotated[list[str], Field(max_length=0)]
    method: MethodSettings

    @model_validator(mode="after")
    def _trains_on_its_drop(self) -> "TrainedTeacher":
        if self.trained != [self.drop]:
            raise ValueError(
                f"trained is {self.trained} but drop is {self.drop!r}: set teacher.drop, trained follows "
                "from it"
            )
        return self

    @model_validator(mode="after")
    def _no_teacher_of_its_own(self) -> "TrainedTeacher":
        if self.method.name == "crt":
            raise ValueError("a teacher has no teacher of its own: choose another teacher.method than crt")
        if self.method.name == "catrs" and self.method.votes_from == "teacher":
            raise ValueError("a teacher has no teacher of its own: set teacher.method.votes_from to self")
        return self


class FetchedTeacher(Section):
    """A teacher that is fetched instead of trained.

    Null: read from the file. An error asks for what the file lacks.
    """

    # A preset's training settings lie beside these and are ignored; other keys are refused below.
    model_config = ConfigDict(extra="allow")

    key: Literal["fetch", "released"]
    drop: str  # the drop it is checked on
    trained: Annotated[list[str], Field(max_length=0)]
    fetched: Annotated[list[str], Field(min_length=1, max_length=1)]  # the stage that fetches it exists
    ref: str | None  # a model reference
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None  # of the file that ref names
    refs: list[str]  # model references: an ensemble's members
    entry: str | None  # which of the file's entries holds the weights
    arch: str | None  # a timm model name, or cifar_resnet<depth>
    arch_args: dict[str, Any]  # passed to timm.create_model
    mean: list[float] | None  # of the normalization layer, per channel
    std: list[Positive] | None
    classes: list[str] | None  # in the order of the network's outputs
    sigma: Positive | None  # of the noise it was trained with, [0,1] pixel units

    @model_validator(mode="after")
    def _is_one_or_several(self) -> "FetchedTeacher":
        unknown = sorted(set(self.model_extra or {}) - set(Recipe.model_fields))
        if unknown:
            raise ValueError(f"{unknown[0]} is not a known key (a typo?)")
        if self.ref is None and not self.refs:
            raise ValueError(
                "ref is not set: give a model reference, such as path:teacher.pth (docs/teachers.md)"
                if self.key == "fetch"
                else "no release is pinned: make one with `crt release`, then `crt pin latest`"
            )
        for ref in (self.ref or "", *self.refs):
            if re.match(r"path:(\./)?models/teacher(/|#|$)", ref):
                raise ValueError(
                    f"ref {ref!r} is what the teacher stage writes, and DVC removes before it runs: "
                    "name a copy elsewhere, or a release (registry:...)"
                )
        if self.ref is not None and self.refs:
            raise ValueError("ref and refs are both given: give one model, or the members of an ensemble")
        if self.sha256 is not None and self.refs:
            raise ValueError("sha256 is for a single ref: write #sha256=<hex> behind each of refs")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or none")
        return self


def _origin(teacher: Any) -> str:
    key = teacher.get("key") if isinstance(teacher, dict) else getattr(teacher, "key", None)
    return _FETCHED if key in ("fetch", "released") else _TRAINED


_TRAINED, _FETCHED = "<trained>", "<fetched>"  # no key of params.yaml looks like that
AnyTeacher = Annotated[
    Annotated[TrainedTeacher, Tag(_TRAINED)] | Annotated[FetchedTeacher, Tag(_FETCHED)],
    Discriminator(_origin),
]


class Student(Recipe):
    """The network that is trained at every retraining."""

    args_for: str | None  # the arch that arch_args are made for; null: any
    init_epochs: Count  # epochs of training that starts from models/init, without warm-up
    init_lr: Positive  # its first learning rate

    @model_validator(mode="before")
    @classmethod
    def _has_an_arch(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("arch", "") is None:
            raise ValueError(
                "arch is not set: name a network of timm, e.g. student=timm student.arch=resnet34"
            )
        return raw

    @model_validator(mode="after")
    def _arch_args_are_of_the_arch(self) -> "Student":
        if self.arch_args and self.args_for not in (None, self.arch):
            raise ValueError(
                f"arch is {self.arch} but arch_args are those of {self.args_for}: "
                f"choose student=timm student.arch={self.arch}"
            )
        return self


IMAGES = {"test": "prepared/test", "validation": "prepared/train"}


class Certify(Section):
    """Randomized smoothing's certification (Cohen et al. 2019, section 3.2.2)."""

    mode: Literal["exact", "adaptive"]  # adaptive: draw until the place among radii is decided
    n0: Draws  # noise draws that select the class in exact mode
    n: Draws  # noise draws that estimate its probability; in adaptive mode at most so many
    alpha: Annotated[float, Field(ge=1e-50, lt=1)]
    radii: Annotated[list[NonNegative], Field(min_length=1)]  # l2 radii to report, [0,1] pixel units
    stride: Count  # certify every stride-th test image
    max_images: Count | None  # at most so many, chosen by their hashes; null: all
    skip_misclassified: bool  # spend no estimation draws where the selected class is not the label
    allow_sigma_mismatch: bool  # certify a model that was trained with another sigma
    precision: Literal["float32", "bfloat16", "int8"]  # of the certified network, and so of the deployed one
    batch_size: Count | None  # noisy images per forward pass; null: chosen from memory
    split: Literal["test", "validation"]  # which images are certified
    images: str  # the folder that holds them; follows from split

    @model_validator(mode="after")
    def _images_are_of_the_split(self) -> "Certify":
        if self.images != IMAGES[self.split]:
            raise ValueError(
                f"split is {self.split} but images is {self.images}: choose `split={self.split}` (the "
                "group), which sets both"
            )
        return self

    @model_validator(mode="after")
    def _can_certify(self) -> "Certify":
        if self.mode == "adaptive" and self.alpha < LEAST_ADAPTIVE_ALPHA:
            raise ValueError(
                f"alpha is {self.alpha}: in adaptive mode set certify.alpha to at least "
                f"{LEAST_ADAPTIVE_ALPHA}, or choose certify=exact"
            )
        if list(self.radii) != sorted(set(self.radii)):
            raise ValueError("radii must be ascending, none twice")
        # k = n votes give the largest lower bound, alpha**(1/n); below 1/2 every image abstains.
        if self.alpha ** (1 / self.n) <= 0.5:
            least = math.floor(math.log(self.alpha) / math.log(0.5)) + 1
            raise ValueError(
                f"n={self.n} is too small for alpha={self.alpha}: every image would abstain; set certify.n "
                f"to at least {least}"
            )
        return self


class Bank(Section):
    """The teacher's logits, computed once and replayed for every student and every retraining."""

    # Crops, flips and noises of each image; 0: the teacher runs in every step.
    views: Annotated[int, Field(ge=0)]
    drops: list[str]  # whose bank stages exist
    folder: str  # what the student depends on
    code: str

    @model_validator(mode="after")
    def _is_a_bank_or_none(self) -> "Bank":
        if (self.folder == "banks") != (self.views > 0):
            raise ValueError(
                f"views is {self.views} but the bank option is "
                f"{'logits' if self.folder == 'banks' else 'none'}: "
                "choose `bank=logits bank.views=N`, or `bank=none`"
            )
        return self


class Pin(Section):
    """A release in use."""

    ref: str  # a model reference


class AnchorPin(Section):
    """The release that the gate holds a whole chain of releases to."""

    # registry:student@<version>#sha256=<hash of its certificates>: nothing else of it is read
    ref: Annotated[str, Field(pattern=r"^registry:[^#]+@[^#@]+#sha256=[0-9a-f]{64}$")]
    reason: Annotated[str, Field(min_length=1, max_length=300)] | None  # null: the first release of its chain


class Anchored(Pin):
    """The baseline, which the gate compares with, and its anchor."""

    anchor: AnchorPin


def _kind(pin: Any) -> str:
    has_anchor = "anchor" in pin if isinstance(pin, dict) else isinstance(pin, Anchored)
    return _ANCHORED if has_anchor else _PIN


_PIN, _ANCHORED = "<pin>", "<anchored>"
AnyPin = Annotated[Annotated[Pin, Tag(_PIN)] | Annotated[Anchored, Tag(_ANCHORED)], Discriminator(_kind)]


class Start(Section):
    """Where the student's training starts from."""

    init: Literal["teacher", "init"]  # init: the weights in models/init; teacher: random weights


Radius = Annotated[str, BeforeValidator(lambda key: key if isinstance(key, str) else str(float(key)))]


class Gate(Section):
    """Non-inferiority margins for the paired comparison with the baseline."""

    against: Literal["teacher", "baseline"]  # teacher: no release is pinned

    margin: Share  # largest acceptable loss of certified accuracy at a radius
    margins: dict[Radius, Share]  # other margins for single radii, keyed by the radius
    acr_margin: NonNegative  # largest acceptable loss of ACR
    max_lost: Share | None  # largest acceptable share of lost certificates, at each radius; null: any
    class_margin: Share | None  # loss in one class that is warned of; null: classes are not compared
    # The margins against the anchor, as a multiple of those against the baseline.
    anchor_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]  # of the two-sided intervals


class Report(Section):
    """What the report shows."""

    images: bool  # images of the test set


class Runtime(Section):
    """Where and with which numerics stages compute.

    Only precision and compile can change results by more than chance.
    """

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    processes: Count  # that train and certify together, each on its own GPU where there are GPUs
    precision: Literal["auto", "float32", "bfloat16"]  # of training
    compile: bool
    workers: Annotated[int, Field(ge=0)]  # processes that decode images; 0: one per core


class Config(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    sigma: Sigma  # standard deviation of the noise, [0,1] pixel units
    preset: Name  # the data set that the settings are made for; folder: any
    data: Data
    teacher: AnyTeacher
    student: Student
    method: MethodSettings
    bank: Bank
    pinned: dict[Literal["init", "baseline"], AnyPin]
    certified: dict[Literal["teacher", "student", "baseline"], dict[str, None]]
    start: Start
    certify: Certify
    gate: Gate
    report: Report
    runtime: Runtime

    @model_validator(mode="after")
    def _teacher_drop_exists(self) -> "Config":
        if self.teacher.drop not in self.data.drops:
            raise ValueError(
                f"teacher.drop is {self.teacher.drop!r}, which is not among data.drops "
                f"({', '.join(self.data.drops)}): choose one of these"
            )
        return self

    @model_validator(mode="after")
    def _preset_is_of_the_data(self) -> "Config":
        if self.preset not in ("folder", self.data.name):
            raise ValueError(
                f"the settings are made for {self.preset} but data/ holds {self.data.name}: "
                f"run `crt get-data {self.preset}` or choose another preset"
            )
        return self

    @model_validator(mode="after")
    def _roles_fit_the_pins(self) -> "Config":
        has_baseline = "baseline" in self.pinned
        if self.start.init == "init" and "init" not in self.pinned:
            raise ValueError(
                "start.init is init, but no release is pinned as pinned.init: run `crt pin`, which sets both"
            )
        if (self.gate.against == "baseline") != has_baseline or (
            "baseline" in self.certified
        ) != has_baseline:
            raise ValueError(
                "pinned.baseline, certified.baseline and gate.against do not agree: run `crt pin` to set "
                "them together"
            )
        if isinstance(self.pinned.get("init"), Anchored):
            raise ValueError("pinned.init.anchor is not a known key: only pinned.baseline has an anchor")
        if not {"teacher", "student"} <= self.certified.keys():
            raise ValueError("certified must have teacher and student: restore conf/config.yaml")
        return self

    @model_validator(mode="after")
    def _margins_name_reported_radii(self) -> "Config":
        for key in self.gate.margins:
            if key not in [str(radius) for radius in self.certify.radii]:
                raise ValueError(
                    f"gate.margins names radius {key!r}, which is not among certify.radii "
                    f"({', '.join(map(str, self.certify.radii))})"
                )
        return self


_TAGS = (_TRAINED, _FETCHED, _PIN, _ANCHORED)  # no keys, but parts of where pydantic finds an error


def validate(raw: Any, source: str) -> Config:
    """Check a mapping against the schema; `source` names it in errors.

    Raises:
        UserError: one sentence that names the key and what is wrong with it.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{source} is empty or no mapping: run `crt compose` to write it from conf/")
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {_sentence(error)}") from None


def load(path: Path = Path("params.yaml")) -> Config:
    """Read and validate params.yaml.

    Raises:
        UserError: the file is missing, no YAML, or does not fit the schema.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `crt compose` to write it from conf/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not YAML ({str(error).splitlines()[0]}): run `crt compose` to rewrite it"
        ) from None
    return validate(raw, str(path))


def _sentence(error: ValidationError) -> str:
    """All findings in one line: `student.lr: must be greater than 0 (got -1)`."""
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if part not in _TAGS) or "the configuration"
        if item["type"] == "extra_forbidden":
            parts.append(f"{where} is not a known key (a typo?)")
        elif item["type"] == "missing":
            parts.append(f"{where} is missing")
        elif item["type"] == "value_error":
            parts.append(f"{where}: {item['ctx']['error']}")
        else:
            said = f"{where}: {item['msg'][0].lower()}{item['msg'][1:]} (got {item['input']!r}"
            if item["type"] == "float_type" and (number := _number_in(item["input"])) is not None:
                said += f", which YAML takes for text: write {number!r}"
            parts.append(f"{said})")
    return "; ".join(parts)


def _number_in(value: Any) -> float | None:
    """The number that a text means, such as `1e-3`, which lacks YAML's decimal point; None: it means none."""
    try:
        number = float(value) if isinstance(value, str) else math.inf
    except ValueError:
        return None
    return number if math.isfinite(number) else None
