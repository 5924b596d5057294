"""conf/, its schema and params.yaml belong together."""

import copy
from pathlib import Path

import pytest
import yaml
from annotated_types import Ge, Le, Lt
from pydantic import BaseModel

from crt import config as schema
from crt.certification import bounds, noise, smoothing, stopping
from crt.config import Config, load, validate
from crt.errors import UserError
from crt.project import Project

ROOT = Path(__file__).resolve().parents[1]
PROJECT = Project(ROOT)
GROUPS = ["data", "scale", "teacher", "student", "method", "bank", "certify", "split", "runtime", "preset"]
OPTIONS = [
    (group, file.stem) for group in GROUPS for file in sorted((ROOT / "conf" / group).glob("[!_]*.yaml"))
]
SCALES = sorted(file.stem for file in (ROOT / "conf/scale").glob("*.yaml"))
STUDENTS = sorted(file.stem for file in (ROOT / "conf/student").glob("[!_]*.yaml"))
LARGEST = 90  # parameters; a list counts once. At most 110, when all that is planned is there


@pytest.fixture(scope="module")
def raw() -> dict:
    return PROJECT.composed()[0].values


def test_params_yaml_is_what_conf_composes_to():
    text = PROJECT.composed()[0].text
    assert (ROOT / "params.yaml").read_text() == text, "params.yaml drifted from conf/: run `crt compose`"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_validates(group, option):
    overrides = [f"{group}={option}"]
    if group == "preset":  # settings for one data set refuse to go with another
        overrides.append("data.name=" + option)
    if option == "timm":
        overrides.append("student.arch=resnet34")
    if option in ("fetch", "released"):  # of what there is no default
        overrides.append("teacher.ref=path:teacher.pth")
    found, config = PROJECT.composed(overrides)
    if group in ("teacher", "student"):
        assert getattr(config, group).key == option  # what `dvc exp show` tells experiments apart by
    assert yaml.safe_load(found.text) == found.values == config.model_dump()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("student", STUDENTS)
def test_every_student_has_a_network_at_every_scale(student, scale):
    overrides = [f"scale={scale}", f"student={student}"] + ["student.arch=resnet34"] * (student == "timm")
    _, config = PROJECT.composed(overrides)
    assert config.student.epochs > config.student.warmup_epochs


def test_smoke_is_laid_on_top():
    _, config = PROJECT.composed(["student=convnext", "+experiment=smoke"])
    assert (config.student.key, config.student.epochs) == ("convnext", 2)


def leaves(value):
    return sum(map(leaves, value.values())) if isinstance(value, dict) and value else 1


def test_params_yaml_is_small_and_every_stage_parameter_is_read(raw):
    assert leaves(raw) <= LARGEST
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    text = (ROOT / "dvc.yaml").read_text()
    listed = {name for stage in stages.values() for name in stage.get("do", stage).get("params", [])}

    def read(path: str) -> bool:
        parents = [path.rsplit(".", n)[0] for n in range(path.count(".") + 1)]
        return any(parent in listed or f"${{{parent}}}" in text for parent in parents)

    # A stage reads these to choose the machine, not a value: a change re-runs nothing.
    machine = {"runtime.device", "runtime.processes", "runtime.workers"}
    # Checked when params.yaml is loaded, by every stage. So is student.args_for, in a section that is listed:
    # `dvc exp run -S student.arch=...` is refused by it where arch_args are another network's.
    checked = {"data.name"}

    def paths(value, prefix=""):
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from paths(inner, f"{prefix}{key}.")
        else:
            yield prefix.rstrip(".")

    unread = [path for path in paths(raw) if not read(path) and path not in machine | checked]
    unread = [path for path in unread if not path.startswith("pinned")]  # foreach: params pinned.${key}
    assert unread == []


def test_a_preset_for_another_data_set_is_refused():
    with pytest.raises(UserError, match="crt get-data cifar10"):
        PROJECT.composed(["preset=cifar10"])


def _models() -> list[type[BaseModel]]:
    return [m for m in vars(schema).values() if isinstance(m, type) and issubclass(m, schema.Section)]


def test_the_schema_has_no_defaults_and_changes_no_value(raw):
    # Stages do not list crt/config.py as a dependency; this is why they need not.
    for model in _models():
        for name, info in model.model_fields.items():
            assert info.is_required(), f"{model.__name__}.{name} has a default outside conf/"
    assert Config.model_validate(raw).model_dump() == raw


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("student.learning_rate", 0.1, "student.learning_rate is not a known key"),
        ("student.lr", "fast", "student.lr"),
        ("student.lr", "fast", "number (got 'fast')"),
        ("certify.alpha", "1e-3", "number (got '1e-3', which YAML takes for text: write 0.001)"),
        ("student.lr", -0.1, "greater than 0"),
        ("student.lr", float("nan"), "student.lr"),
        ("sigma", 0, "sigma: input should be greater than or equal to 0.002"),
        ("sigma", 11.0, "sigma: input should be less than or equal to 10"),
        ("certify.n", 10**8, "certify.n: input should be less than or equal to 10000000"),
        ("certify.alpha", 1e-60, "certify.alpha"),
        ("data.drops", [], "data.drops"),
        ("data.drops", ["a", "a"], "twice"),
        ("data.drops", ["../a"], "data.drops"),
        ("data.channels", 4, "data.channels"),
        ("method.alpha", 1.5, "method"),
        ("method", {"name": "magic"}, "method"),
        ("certify.n", 9, "set certify.n to at least 10"),
        ("certify.radii", [0.5, 0.25], "ascending"),
        ("runtime.device", "gpu", "runtime.device"),
        ("runtime.precision", "float16", "runtime.precision"),
        ("student.warmup_epochs", 400, "warmup_epochs"),
        ("student.arch", "resnet26", "choose student=timm student.arch=resnet26"),
        ("certify.split", "validation", "split=validation"),
        ("bank.views", 4, "bank=logits bank.views=N"),
        ("start.init", "init", "run `crt pin`"),
        ("gate.against", "baseline", "run `crt pin`"),
        ("pinned", {"baseline": {"ref": "registry:student@v1.0.0"}}, "run `crt pin`"),
        ("teacher.trained", ["2025-02"], "set teacher.drop"),
        ("preset", "cifar10", "crt get-data cifar10"),
    ],
)
def test_a_wrong_value_ends_in_one_sentence_that_names_it(raw, path, value, said):
    broken = copy.deepcopy(raw)
    *parents, last = path.split(".")
    section = broken
    for parent in parents:
        section = section[parent]
    section[last] = value
    with pytest.raises(UserError) as error:
        validate(broken, "params.yaml")
    message = str(error.value)
    assert said in message
    assert message.startswith("params.yaml: ")
    assert "\n" not in message


def test_the_teachers_drop_is_one_of_the_drops():
    with pytest.raises(UserError, match=r"'2031-01', which is not among data\.drops"):
        PROJECT.composed(["teacher.drop=2031-01"])


def test_a_teacher_is_not_trained_by_transfer(raw):
    broken = copy.deepcopy(raw)
    broken["teacher"]["method"] = {"name": "crt", "alpha": 1.0}
    with pytest.raises(UserError, match=r"teacher\.method"):
        validate(broken, "params.yaml")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher=fetch"], "ref is not set: give a model reference"),
        (["teacher=released"], "no release is pinned"),
        (["teacher=fetch", "teacher.ref=path:models/teacher"], "teacher stage writes"),
        (
            ["teacher=fetch", "teacher.refs=[path:a, path:./models/teacher/model.safetensors]"],
            "teacher stage writes",
        ),
    ],
)  # fmt: skip
def test_a_reference_that_cannot_be_is_refused_at_once(overrides, said):
    with pytest.raises(UserError, match=said) as error:
        PROJECT.composed(overrides)
    assert "\n" not in str(error.value)


def test_an_unknown_option_is_answered_with_the_known_ones():
    with pytest.raises(UserError) as error:
        PROJECT.composed(["student=nope"])
    assert "Could not find 'student/nope' Available options in 'student': convnext convnextv2" in str(
        error.value
    )
    assert str(error.value).endswith("wide_resnet")


def test_margins_of_radii_may_be_written_as_numbers():
    assert PROJECT.composed(["+gate.margins={0.5: 0.01}"])[1].gate.margins == {"0.5": 0.01}
    with pytest.raises(UserError, match="not among certify"):
        PROJECT.composed(["+gate.margins={0.3: 0.01}"])


@pytest.mark.parametrize(
    ("arch", "said"),
    [("resnetv2_50", None), ("cifar_resnet20", None), ("resnet26x", "did you mean resnet26")],
)
def test_an_unknown_network_is_refused_when_params_are_composed(arch, said):
    overrides = ["student=timm", f"student.arch={arch}"]
    if said is None:
        assert PROJECT.composed(overrides)[1].student.arch == arch
        return
    with pytest.raises(UserError, match=said):
        PROJECT.composed(overrides)


def test_the_pinned_release_can_teach():
    ref = "registry:student@v1.0.0"
    pins = [f'+pinned.baseline.ref="{ref}"', "+certified.baseline={}", "gate.against=baseline"]
    _, config = PROJECT.composed(["teacher=released", *pins, "student=convnext"])
    assert config.teacher.ref == config.pinned["baseline"].ref == ref
    assert config.start.init == "teacher"


def test_limits_are_those_of_certification():
    assert limits(Config, "sigma") == (noise.LEAST_SIGMA, noise.MOST_SIGMA)
    assert (1, smoothing.MOST_DRAWS) == limits(schema.Certify, "n") == limits(schema.Certify, "n0")
    assert limits(schema.Certify, "alpha") == (bounds.LEAST_ALPHA, 1)
    assert stopping.LEAST_ADAPTIVE_ALPHA == schema.LEAST_ADAPTIVE_ALPHA
    with pytest.raises(
        UserError, match=r"in adaptive mode set certify\.alpha to at least 1e-12, or choose certify=exact"
    ):
        PROJECT.composed(["certify=adaptive", "certify.alpha=1e-13"])
    assert PROJECT.composed(["certify=exact", "certify.alpha=1e-13"])[1].certify.alpha == 1e-13


def limits(section: type[BaseModel], name: str) -> tuple[float, ...]:
    """What a number may be at least and at most (the latter may be excluded)."""
    found = section.model_fields[name].metadata
    (least,) = (limit.ge for limit in found if isinstance(limit, Ge))
    (most,) = (
        limit.le if isinstance(limit, Le) else limit.lt for limit in found if isinstance(limit, Le | Lt)
    )
    return least, most


@pytest.mark.parametrize("preset", ["cifar10", "fashion_mnist", "folder", "imagenet"])
def test_presets_certify_adaptively_and_ask_for_no_costly_radius(preset):
    """But for the sample's, whose few draws cost seconds."""
    _, config = PROJECT.composed([f"preset={preset}", f"data.name={preset}"])
    certify = config.certify
    assert (certify.mode, certify.n) == ("adaptive", 100_000)
    assert stopping.costly_radii(certify.radii, config.sigma, certify.n, certify.alpha) == []
    assert PROJECT.composed(["preset=digits"])[1].certify.mode == "exact"


def test_least_n_is_the_least():
    """n = 10 can just certify at alpha 0.001: 0.001 ** (1/10) = 0.5012 > 1/2, and 0.001 ** (1/9) = 0.464."""
    _, config = PROJECT.composed(["certify.n=10"])
    assert config.certify.n == 10
    with pytest.raises(UserError):
        PROJECT.composed(["certify.n=9"])


def test_load_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match="crt compose"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1,")
    with pytest.raises(UserError, match="not YAML"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(UserError, match="empty"):
        load(tmp_path / "params.yaml")
