import pytest
from certificate_tables import abstained, certified, from_votes, image, without_noise, write_table

from crt.errors import UserError
from crt.evaluation.certificates import read_certificates
from crt.evaluation.paired import check_comparable, mcnemar, pair


def tables(tmp_path, first, second, **settings):
    return (
        read_certificates(write_table(tmp_path / "first.tsv", first)),
        read_certificates(write_table(tmp_path / "second.tsv", second, **settings)),
    )


@pytest.mark.parametrize("older", [0, 1])
def test_certificates_of_an_older_kind_are_not_compared(tmp_path, older):
    rows = [certified(0, 0.6), certified(1, 0.3)]
    for place in range(2):
        tsv = write_table(tmp_path / f"{place}.tsv", rows)
        if place == older:
            without_noise(tsv)
    pair = [read_certificates(tmp_path / f"{place}.tsv") for place in range(2)]
    said = f"{older}.tsv is of an older kind, with other noise; certify that model again"
    with pytest.raises(UserError, match=f"cannot be compared: .*{said}$"):
        check_comparable(*pair)
    check_comparable(pair[0], pair[0])
    check_comparable(pair[1], pair[1])


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(4, 4) == 1.0


def test_an_image_that_stands_there_twice_counts_once(tmp_path):
    first = [certified(0, 0.6), certified(1, 0.3), [*certified(2, 0.3)[:-1], image(1)]]
    second = [certified(0, 0.6), abstained(1), [*abstained(2)[:-1], image(1)]]
    both = pair(*tables(tmp_path, first, second))
    assert len(both) == 2
    assert [list(right) for right in both.right_at(0.25)] == [[True, True], [True, False]]


def test_the_images_in_common_are_found_by_their_pixels(tmp_path):
    """Another test set: image 2 went, image 5 came before the others, image 1 has another label now."""
    first = [certified(0, 0.6), certified(1, 0.3), certified(2, 0.2), certified(3, 0.1)]
    second = [certified(5, 0.5), certified(0, 0.4), certified(1, 0.3, label=7, predict=7), abstained(3)]
    second = [[str(place), *row[1:]] for place, row in enumerate(second)]
    both = pair(*tables(tmp_path, first, second, data_fingerprint="c", stride=2), common=True)
    assert both.first.image == both.second.image == [image(0), image(3)]
    assert both.first.radius.tolist() == [0.6, 0.1]
    assert both.second.radius.tolist() == [0.4, 0.0]


@pytest.mark.parametrize(("mode", "reach"), [("exact", 0.616), ("adaptive", 0.5)])
def test_no_radius_exceeds_the_reach(tmp_path, mode, reach):
    """The largest radius that 1,000 draws certify, or in adaptive mode the largest reported one below it."""
    rows = [certified(0, 0.5), certified(1, 0.25)]
    paths = (write_table(tmp_path / f"{n}.tsv", rows, mode=mode, radii=[0.0, 0.25, 0.5, 0.75]) for n in "ab")
    both = pair(*map(read_certificates, paths))
    assert both.reach == pytest.approx(reach, abs=1e-3)
    assert both.radii == [0.0, 0.25, 0.5]


def test_nothing_in_common_is_refused(tmp_path):
    first, second = [certified(0, 0.6), certified(1, 0.3)], [certified(1, 0.6), certified(2, 0.3)]
    with pytest.raises(UserError, match=r"1 image\(s\) in common tell nothing"):
        pair(*tables(tmp_path, first, second), common=True)
    with pytest.raises(UserError, match=r"sigma is 0\.25 in one"):
        pair(*tables(tmp_path, first, second, sigma=0.5), common=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sigma": 0.5}, "sigma is 0.25 in one and 0.5 in the other"),
        ({"alpha": 0.01}, "alpha is"),
        ({"n": 999}, "n is"),
        ({"n0": 99}, "n0 is"),
        ({"mode": "adaptive"}, "mode is"),
        ({"stride": 2}, "stride is"),
        ({"max_images": 5}, "max_images is"),
        ({"data_fingerprint": "c"}, "data_fingerprint is"),
    ],
)
def test_other_settings_are_refused(tmp_path, settings, says):
    rows = [certified(0, 0.6), certified(1, 0.6)]
    with pytest.raises(UserError, match=says) as error:
        check_comparable(*tables(tmp_path, rows, rows, **settings))
    assert "first.tsv" in str(error.value)
    assert "second.tsv" in str(error.value)


def test_other_images_are_refused(tmp_path):
    first = [certified(0, 0.6), certified(1, 0.6), certified(2, 0.6)]
    with pytest.raises(UserError, match=r"2 image\(s\) are in one alone"):
        check_comparable(*tables(tmp_path, first, [*first[:2], certified(7, 0.6)]))
    with pytest.raises(UserError, match="other names or labels"):
        check_comparable(*tables(tmp_path, first, [*first[:2], abstained(2, label=5)]))
    with pytest.raises(UserError, match="certify more"):
        pair(*tables(tmp_path, first[:1], first[:1]))


def test_another_model_seed_or_shortcut_is_allowed(tmp_path):
    rows = [from_votes(0, 990), from_votes(1, 400)]
    check_comparable(
        *tables(tmp_path, rows, rows, model_fingerprint="c", seed=1, skip_misclassified=False, seconds=1.0)
    )
