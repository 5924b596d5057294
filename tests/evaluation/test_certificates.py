import json

import numpy as np
import pytest
from certificate_tables import SETTINGS, abstained, certified, misclassified, without_noise, write_table

from crt.certification.certificate import Certificate, Row
from crt.certification.table import COLUMNS
from crt.certification.table import write_table as write_certified
from crt.errors import UserError
from crt.evaluation.certificates import read_certificates


def test_rows_are_read_in_the_order_of_images(tmp_path):
    tsv = write_table(tmp_path / "a.tsv", [misclassified(2), certified(0, 0.123456789012345), abstained(1)])
    table = read_certificates(tsv)
    assert table.idx.tolist() == [0, 1, 2]
    assert table.predict.tolist() == [3, -1, 4]
    assert table.radius.tolist() == [0.123456789012345, 0.0, 0.0]
    assert table.correct.tolist() == [True, False, False]
    assert table.status.tolist() == ["certified", "abstained", "misclassified"]
    assert table.n.tolist() == [1000, 1000, 0]
    assert table.name == ["image0.png", "image1.png", "image2.png"]
    assert table.settings == SETTINGS
    assert table.radii == [0.0, 0.25, 0.5]


def test_right_radius_and_right_at_need_the_right_class(tmp_path):
    rows = [certified(0, 0.25), certified(1, 0.9, predict=4), certified(2, 0.0), abstained(3)]
    table = read_certificates(write_table(tmp_path / "a.tsv", rows))
    assert table.right_radius.tolist() == [0.25, 0, 0, 0]
    assert table.right_at(0.0).tolist() == [True, False, True, False]
    assert table.right_at(0.25).tolist() == [True, False, False, False]
    assert not table.right_at(np.nextafter(0.25, 1)).any()


def test_a_name_with_tab_and_quote_survives(tmp_path):
    row = certified(0, 0.25)
    row[6] = 'a "quoted"\tname.png'
    assert read_certificates(write_table(tmp_path / "a.tsv", [row])).name == ['a "quoted"\tname.png']


def changed(field: str, value: str, row: list[str]) -> list[str]:
    return [value if name == field else old for name, old in zip(COLUMNS, row, strict=True)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (certified(1, 0.5)[:-1], "image is '', no hash"),
        (certified(0, 0.5), "image 0 appears twice"),
        (changed("idx", "one", certified(1, 0.5)), "one"),
        (certified(1, 0.5)[:3], "status is ''"),
        (changed("idx", "-1", certified(1, 0.5)), "out of range"),
        (changed("idx", "", certified(1, 0.5)), "not all whole numbers"),
        (changed("idx", str(10**30), certified(1, 0.5)), "not all whole numbers"),
        (changed("n", str(10**400), certified(1, 0.5)), "not all whole numbers"),
        (changed("label", "3.5", certified(1, 0.5)), "not all whole numbers"),
        (changed("time", "nan", certified(1, 0.5)), "out of range"),
        (changed("p_lower", "nan", certified(1, 0.5)), "out of range"),
        (changed("status", "x" * 10_000, certified(1, 0.5)), "status is 'xxx"),
        (changed("radius", "", certified(1, 0.5)), "needs a radius"),
        (changed("radius", "nan", certified(1, 0.5)), "radius is nan"),
        (changed("radius", "inf", certified(1, 0.5)), "radius is inf"),
        (changed("radius", "-0.5", certified(1, 0.5)), "radius is -0.5"),
        (changed("correct", "0", certified(1, 0.5)), "correct is 0"),
        (changed("correct", "True", certified(1, 0.5)), "neither 0 nor 1"),
        (changed("predict", "4", certified(1, 0.5)), "correct is 1"),
        (changed("predict", "-1", certified(1, 0.5)), "predict is -1"),
        (changed("n_a", "1001", certified(1, 0.5)), "out of range"),
        (changed("p_lower", "0.4", certified(1, 0.5)), "at least 1/2"),
        (changed("p_lower", "1.4", certified(1, 0.5)), "out of range"),
        (changed("time", "-1", certified(1, 0.5)), "out of range"),
        (changed("status", "certifi", certified(1, 0.5)), "none of certified"),
        (changed("radius", "0.5", abstained(1)), "has a radius"),
        (changed("correct", "1", misclassified(1)), "correct is 1"),
    ],
)
def test_a_damaged_row_is_named_by_its_line(tmp_path, row, says):
    tsv = write_table(tmp_path / "a.tsv", [certified(0, 0.5), row, certified(7, 0.5)])
    with pytest.raises(UserError, match="line 3 is damaged") as error:
        read_certificates(tsv)
    assert says in str(error.value)
    assert str(tsv) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("place", [0, 1])
def test_a_row_with_too_many_cells(tmp_path, place):
    rows = [certified(0, 0.5), certified(1, 0.5)]
    rows[place] = [*rows[place], "more"]
    with pytest.raises(UserError, match="is damaged") as error:
        read_certificates(write_table(tmp_path / "a.tsv", rows))
    assert "\n" not in str(error.value)


def test_numbers_keep_their_last_digit(tmp_path):
    draw = np.random.default_rng(0)
    radii, seconds = draw.random(3000) * 0.3, 10.0 ** draw.uniform(-300, 300, 3000)
    rows = [certified(i, float(radius)) for i, radius in enumerate(radii)]
    rows = [changed("time", repr(float(s)), row) for s, row in zip(seconds, rows, strict=True)]
    table = read_certificates(write_table(tmp_path / "a.tsv", rows))
    assert np.array_equal(table.radius, radii)
    assert np.array_equal(table.seconds, seconds)
    assert table.p_lower.tolist() == [float(row[9]) for row in rows]


def test_a_fault_far_down_in_a_large_table(tmp_path):
    text = "\t".join(certified(0, 0.25)[1:])
    tsv = write_table(tmp_path / "a.tsv", [])
    with tsv.open("a") as file:
        file.writelines(f"{i}\t{text}\n" for i in range(50_000))
    assert len(read_certificates(tsv)) == 50_000
    with tsv.open("a") as file:
        file.write(f"0\t{text}\n")
    with pytest.raises(UserError, match=r"line 50002 is damaged \(image 0 appears twice"):
        read_certificates(tsv)


def test_a_file_cut_at_any_byte_of_its_last_row_is_refused(tmp_path):
    tsv = write_table(tmp_path / "a.tsv", [certified(0, 0.5), certified(1, 0.5)])
    whole = tsv.read_bytes()
    start = whole.rstrip().rindex(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        tsv.write_bytes(whole[:end])
        with pytest.raises(UserError, match="line 3"):
            read_certificates(tsv)


def test_other_damage(tmp_path):
    tsv = tmp_path / "a.tsv"
    with pytest.raises(UserError, match=r"a\.json is missing"):
        read_certificates(tsv)
    tsv.with_suffix(".json").write_text(json.dumps(SETTINGS))
    with pytest.raises(UserError, match=r"a\.tsv is missing"):
        read_certificates(tsv)
    tsv.write_text("")
    with pytest.raises(UserError, match="line 1 is not the header"):
        read_certificates(tsv)
    tsv.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is damaged"):
        read_certificates(tsv)
    write_table(tsv, [])
    with pytest.raises(UserError, match="holds no image"):
        read_certificates(tsv)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("not JSON", "is not JSON"),
        ("[1]", "holds no JSON object"),
        (json.dumps({key: value for key, value in SETTINGS.items() if key != "sigma"}), "lacks 'sigma'"),
        (json.dumps(SETTINGS | {"n": "1000"}), "has no valid 'n'"),
    ],
)
def test_damaged_settings(tmp_path, settings, says):
    tsv = write_table(tmp_path / "a.tsv", [certified(0, 0.5)])
    tsv.with_suffix(".json").write_text(settings)
    with pytest.raises(UserError, match=says):
        read_certificates(tsv)


def test_what_certification_writes_is_read_back(tmp_path):
    rows = [
        Row(0, "a" * 32, Certificate(2, 0.1 + 0.2, 990, 1000, 100, 0.97, "certified"), 0.25),
        Row(2, "b" * 32, Certificate(-1, 0.0, 500, 1000, 100, 0.45, "abstained"), 0.5),
        Row(4, "a" * 32, Certificate(1, None, 0, 0, 100, None, "misclassified"), 0.125),
    ]
    names = [f'"{i}"\t.png' for i in range(5)]
    write_certified(tmp_path / "a.tsv", rows, [2, 0, 0, 0, 0], names, SETTINGS)
    table = read_certificates(tmp_path / "a.tsv")
    assert table.idx.tolist() == [0, 2, 4]
    assert table.radius.tolist() == [0.1 + 0.2, 0.0, 0.0]
    assert table.correct.tolist() == [True, False, False]
    assert table.seconds.tolist() == [0.25, 0.5, 0.125]
    assert table.name == [names[0], names[2], names[4]]
    assert table.p_lower.tolist() == [0.97, 0.45, 0.0]
    assert table.once.tolist() == [True, True, False]


def test_certificates_of_version_0_1_0_are_read(tmp_path):
    """They have no column of images, and are not compared with newer ones (their noise has no name)."""
    rows = [certified(0, 0.5)[:-1], abstained(1)[:-1]]
    tsv = tmp_path / "a.tsv"
    lines = [COLUMNS[:-1], *rows]
    without_noise(write_table(tsv, []))
    tsv.write_text("".join("\t".join(line) + "\n" for line in lines))
    table = read_certificates(tsv)
    assert table.noise is None
    assert table.status.tolist() == ["certified", "abstained"]
    assert table.once.all()
