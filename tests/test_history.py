"""A history from somewhere else is checked; what is right is kept to the byte."""

import json

import pytest

from crt import history
from crt.errors import DamagedFileError, MissingFileError
from crt.history import Entry, History, parse_history, read_history, released, version_of


def entry(**changed) -> dict:
    return dict.fromkeys(Entry.model_fields) | {
        "version": "v1.0.0",
        "date": "2025-01-06",
        "drops": ["2025-01"],
        "arch": "resnet18",
        "sigma": 0.25,
        "acr": 0.42,
        "certified_accuracy": {"0.0": 0.9, "0.25": 0.5},
        "model": "a" * 64,
        "verdict": "pass",
        "change": {"acr": -0.01, "certified_accuracy": {"0.0": -0.02}},
    } | changed  # fmt: skip


def text(*entries: dict, **changed) -> bytes:
    return json.dumps({"format": 1, "releases": list(entries)} | changed).encode()


def test_what_is_written_is_read_again():
    found = parse_history(text(entry(), entry(version=None, date=None)))
    assert parse_history(found.model_dump_json().encode()) == found
    assert [one.version for one in found.releases] == ["v1.0.0", None]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"format": 1}',
        b'{"format": 1, "releases": []}',
        b'{"format": 1, "releases": [{}]}',
        text(entry(), format=2),
        text(entry(), more=1),
        text(entry(more=1)),
        text(entry(version="v1\n# a heading")),
        text(entry(version="v" * 301)),
        text(entry(arch=None)),
        text(entry(arch=7)),
        text(entry(date="yesterday")),
        text(entry(acr="0.4")),
        text(entry(acr=-0.1)),
        text(entry(certified_accuracy={"0.0": 1.1})),
        text(entry(certified_accuracy={"<b>": 0.5})),
        text(entry(change={"acr": 0.0})),
        text(entry(candidates=0)),
        text(entry(model="a")),
        text(entry()).replace(b"0.42", b"NaN"),
        text(entry()).replace(b"0.42", b"1e999"),
        b"\xff" + text(entry()),
        b'{"a":' * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_history_is_refused_in_one_sentence(content, tmp_path):
    (tmp_path / "history.json").write_bytes(content)
    with pytest.raises(
        DamagedFileError, match=r"history\.json is no history of releases \(.+\): make"
    ) as error:
        read_history(tmp_path / "history.json")
    assert len(str(error.value).replace(str(tmp_path), "")) < 400
    assert "\n" not in str(error.value)


def test_a_huge_file_is_not_parsed(monkeypatch):
    monkeypatch.setattr(history, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="1000 are the most"):
        parse_history(text(*[entry()] * 10))


def test_a_missing_one(tmp_path):
    with pytest.raises(MissingFileError, match="is missing"):
        read_history(tmp_path / "history.json")


def test_a_tag_completes_the_last_entry_alone():
    before = parse_history(text(entry(), entry(version=None, date=None)))
    facts = {"begins": "the classes are not those of v1.0.0", "candidates": 3, "arch": "another"}
    after = released(before, "v2.0.0", "2025-03-31", facts)
    assert after.releases[0] == before.releases[0]
    last = after.releases[1].model_dump()
    assert last == before.releases[1].model_dump() | {
        "version": "v2.0.0",
        "date": "2025-03-31",
        "begins": facts["begins"],
        "candidates": 3,
    }


@pytest.mark.parametrize("facts", [{"candidates": "3"}, {"begins": ["x"]}, {"begins": "x\ny"}])
def test_a_tag_with_other_types_is_refused(facts):
    with pytest.raises(ValueError, match=r"^(begins|candidates): "):
        released(History.model_validate_json(text(entry())), "v1.0.0", "2025-01-01", facts)


@pytest.mark.parametrize(
    ("ref", "version"),
    [
        ("registry:student@v1.2.0#sha256=" + "a" * 64, "v1.2.0"),
        ("registry:student@v1.2.0", "v1.2.0"),
        ("registry:git@host:team/project:student@v1.0.0", "registry:git@host:team/project:student@v1.0.0"),
        ("path:elsewhere#sha256=" + "a" * 64, "path:elsewhere"),
    ],
)
def test_what_a_pinned_model_is_called(ref, version):
    assert version_of(ref) == version
