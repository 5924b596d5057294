import pytest

from crt.files import replacing, replacing_file, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupted(writing):
    with writing as aside:
        (aside / "half" if aside.is_dir() else aside).write_text("half")
        raise KeyboardInterrupt


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one\n")
    with replacing_file(path) as aside:
        aside.write_text("two\n")
        assert path.read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"
    assert names(path.parent) == ["a.txt"]


def test_an_error_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(KeyboardInterrupt):
        interrupted(replacing_file(path))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert names(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_at_the_end_over_what_a_kill_left(tmp_path):
    path = tmp_path / "a"
    for leftover in ("a.partial", "a.partial-old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "old").write_text("x")
    for content in ("one", "two"):
        with replacing(path) as aside:
            assert names(aside) == []
            (aside / content).write_text(content)
        assert names(path) == [content]
    with pytest.raises(KeyboardInterrupt):
        interrupted(replacing(path))
    assert names(tmp_path) == ["a"]
    assert names(path) == ["two"]
