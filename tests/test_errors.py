"""What messages are made of."""

from crt.errors import first_ten


def test_first_ten():
    assert first_ten(["a", "b"]) == "a, b"
    assert first_ten([str(n) for n in range(13)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more"
    assert first_ten(list("abcdefghij"), 12) == "a, b, c, d, e, f, g, h, i, j and 2 more"
