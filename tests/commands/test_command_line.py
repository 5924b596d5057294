"""What holds for every command."""

import io
import sys

from crt import cli


def test_names_in_any_script_can_be_printed_to_an_ascii_terminal(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(cli, "app", lambda: print("café"))
    cli.main()
    sys.stdout.flush()
    assert written.getvalue() == b"caf\\xe9\n"
