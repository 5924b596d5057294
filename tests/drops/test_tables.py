import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crt.drops.tables import read_table
from crt.errors import UserError


def table(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path)


@pytest.mark.parametrize(
    "content",
    [
        "file,label\na b.png,\u732b\nc.png,\n",
        "file;label\r\na b.png;\u732b\r\nc.png;\r\n",
        "file\tlabel\na b.png\t\u732b\n\nc.png\n",
        "\ufefffile,label,,\n a b.png , \u732b,,\n,,,\nc.png,,,\n",
        'sep=|\nfile|label\n"a b.png"|"\u732b"\nc.png|\n',
        codecs.BOM_UTF16_LE + "file\tlabel\na b.png\t\u732b\nc.png\t\n".encode("utf-16-le"),
    ],
)
def test_the_same_table_in_many_spellings(tmp_path, content):
    found = table(tmp_path, content)
    assert found.columns == ["file", "label"]
    assert [cells for _, cells in found.rows] == [["a b.png", "\u732b"], ["c.png", ""]]


def test_columns_are_found_in_any_case_and_lines_are_numbered(tmp_path):
    found = table(tmp_path, 'ID,Label\n\n1,"two\nlines"\n2,b\n')
    assert found.place("class", "label") == 1
    assert found.place("file") is None
    assert found.rows == [(4, ["1", "two\nlines"]), (5, ["2", "b"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: give a table"),
        ("\n , \n", "is empty"),
        ("file,label\na.png,cat,black\n", r"line 2: it has 3 cells for 2 columns"),
        (
            "file,label\na.png,caf\u00e9\n".encode("latin1"),
            r"no text in UTF-8 .* at byte 20.*: save it again",
        ),
        (b"PK\x03\x04\0\0", "is no text"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=f"a.csv.*{message}"):
        table(tmp_path, content)


@given(
    st.lists(
        st.tuples(*2 * [st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)]),
        max_size=5,
    ),
    st.sampled_from(",;\t|"),
)
def test_what_a_spreadsheet_writes_is_read_back(tmp_path_factory, rows, delimiter):
    import csv

    path = tmp_path_factory.mktemp("t") / "a.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("file", "label"), *rows])
    expected = [[cell.strip() for cell in row] for row in rows]
    assert [cells for _, cells in read_table(path).rows] == [row for row in expected if any(row)]
