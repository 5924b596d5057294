"""Downloads, and references to places.

The server is real, and cuts off, redirects, fails, is slow or sends something else.
"""

import hashlib
import socket

import numpy as np
import pytest
from http_server import in_turn, serve, server, slowly

from crt.errors import UserError
from crt.references import fetch
from crt.references.fetch import download
from crt.references.locate import locate, parse
from crt.references.pinned import copy_pinned

CONTENT = b"\x80\x02" + np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF", 0.01)
    with server() as running:
        yield running


def get(web, tmp_path, sha256=SHA256, path="/teacher.pth"):
    download(web.url + path, tmp_path / "target", sha256)
    return (tmp_path / "target").read_bytes()


def nothing_left(tmp_path) -> bool:
    return not list(tmp_path.iterdir())


def test_a_plain_download(web, tmp_path, capsys):
    web.routes["/teacher.pth"] = serve(CONTENT)
    assert get(web, tmp_path) == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert "teacher.pth" in capsys.readouterr().err  # the progress


def test_a_download_that_is_cut_off_leaves_nothing_and_the_next_run_has_it(web, tmp_path):
    web.routes["/teacher.pth"] = serve(CONTENT, cut_first=1_500_000)
    with pytest.raises(UserError, match=r"broke off, \d+ bytes are missing\): run again") as error:
        get(web, tmp_path)
    assert "\n" not in str(error.value)
    assert nothing_left(tmp_path)
    assert get(web, tmp_path) == CONTENT


def test_what_a_killed_run_left_is_no_part_of_the_file(web, tmp_path):
    (tmp_path / "target.partial").write_bytes(b"x" * (len(CONTENT) + 1))
    web.routes["/teacher.pth"] = serve(CONTENT)
    assert get(web, tmp_path) == CONTENT
    assert [request["range"] for request in web.requests] == [None]


def test_redirects_are_followed(web, tmp_path):
    web.routes["/teacher.pth"] = lambda handler: handler.send(302, Location="/there")
    web.routes["/there"] = lambda handler: handler.send(307, Location=f"{web.url}/at/last")
    web.routes["/at/last"] = serve(CONTENT)
    assert get(web, tmp_path) == CONTENT


@pytest.mark.parametrize("target", ["/teacher.pth", "file:///etc/passwd"])
def test_redirects_to_nowhere(web, tmp_path, target):
    web.routes["/teacher.pth"] = lambda handler: handler.send(302, Location=target)
    with pytest.raises(UserError, match="redirects to nowhere"):
        get(web, tmp_path)
    assert nothing_left(tmp_path)


def test_a_server_error_passes(web, tmp_path):
    web.routes["/teacher.pth"] = in_turn(
        lambda handler: handler.send(500), lambda handler: handler.send(503), serve(CONTENT)
    )
    assert get(web, tmp_path) == CONTENT
    assert len(web.requests) == 3


def test_a_server_error_that_stays_is_tried_a_bounded_number_of_times(web, tmp_path):
    web.routes["/teacher.pth"] = lambda handler: handler.send(500)
    with pytest.raises(UserError, match="500 Internal Server Error") as error:
        get(web, tmp_path)
    assert "\n" not in str(error.value)
    assert len(web.requests) == 1 + fetch.RETRIES
    assert nothing_left(tmp_path)


def test_a_server_does_not_say_how_long_to_wait(web, tmp_path):
    web.routes["/teacher.pth"] = in_turn(
        lambda handler: handler.send(503, Retry_After="86400"), serve(CONTENT)
    )
    assert get(web, tmp_path) == CONTENT


def test_a_refusal_is_not_tried_again(web, tmp_path):
    web.routes["/teacher.pth"] = lambda handler: handler.send(403)
    with pytest.raises(UserError, match="403 Forbidden"):
        get(web, tmp_path)
    assert len(web.requests) == 1
    assert nothing_left(tmp_path)


def test_a_slow_server(web, tmp_path):
    web.routes["/teacher.pth"] = slowly(CONTENT, parts=5, pause=0.05)
    assert get(web, tmp_path) == CONTENT


def test_a_server_that_stops_answering(web, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", (1.0, 0.2))
    web.routes["/teacher.pth"] = slowly(CONTENT, parts=2, pause=0.8)
    with pytest.raises(UserError, match="no answer in time"):
        get(web, tmp_path)
    assert nothing_left(tmp_path)


def test_a_wrong_hash_says_both_and_keeps_nothing(web, tmp_path):
    web.routes["/teacher.pth"] = serve(CONTENT)
    wrong = "0" * 64
    with pytest.raises(UserError, match=f"{SHA256} instead of {wrong}") as error:
        get(web, tmp_path, sha256=wrong)
    assert "\n" not in str(error.value)
    assert nothing_left(tmp_path)


def test_a_web_page_instead_of_weights(web, tmp_path):
    page = b"<!DOCTYPE html><html><title>Quota exceeded</title><body>sorry</body></html>"
    web.routes["/teacher.pth"] = lambda handler: handler.send(200, page, Content_Type="text/html")
    with pytest.raises(UserError, match=r"a web page \('Quota exceeded'\) instead of weights"):
        get(web, tmp_path)
    assert nothing_left(tmp_path)


def test_more_bytes_than_any_classifier_has(web, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "LARGEST", 1_000_000)
    web.routes["/teacher.pth"] = serve(CONTENT)
    with pytest.raises(UserError, match="more than any classifier"):
        get(web, tmp_path)
    assert nothing_left(tmp_path)


def test_an_answer_that_does_not_end(web, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "LARGEST", 1_500_000)

    def endless(handler):
        handler.send(200, Content_Length="", Transfer_Encoding="chunked")
        for _ in range(3):
            handler.wfile.write(b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n")

    web.routes["/teacher.pth"] = endless
    with pytest.raises(UserError, match="more than 1500000 bytes"):
        get(web, tmp_path)
    assert nothing_left(tmp_path)


def test_a_connection_that_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match="connection refused") as error:
        download(f"http://127.0.0.1:{port}/a", tmp_path / "target", SHA256)
    assert "\n" not in str(error.value)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    "url", ["http://example.org/a", "ftp://127.0.0.1/a", "file:///etc/passwd", "https://"]
)
def test_other_schemes_are_refused(url, tmp_path):
    with pytest.raises(UserError, match="use https://"):
        download(url, tmp_path / "target", SHA256)


class TestReferences:
    def test_a_downloaded_file_is_found_again(self, web, tmp_path):
        web.routes["/teacher.pth"] = serve(CONTENT)
        ref = parse(f"{web.url}/teacher.pth#sha256={SHA256}")
        first = locate(ref, tmp_path, tmp_path / "work")
        assert locate(ref, tmp_path, tmp_path / "work") == first
        assert len(web.requests) == 1

    @pytest.mark.parametrize("ref", ["https://example.org/a.pth", "dvc:s3://bucket/a.pth"])
    def test_a_source_that_can_change_needs_a_hash(self, ref, tmp_path):
        with pytest.raises(UserError, match="#sha256="):
            locate(parse(ref), tmp_path, tmp_path / "work")
        assert nothing_left(tmp_path)

    @pytest.mark.parametrize("text", ["teacher.pth", "path:", "s3://bucket/a", "", "ftp://a/b"])
    def test_unknown_forms(self, text):
        with pytest.raises(UserError, match="unknown form: write path:"):
            parse(text)

    def test_hashes_are_hashes_and_agree(self):
        with pytest.raises(UserError, match="64 hexadecimal"):
            parse("path:a#sha256=abc")
        with pytest.raises(UserError, match="contradict"):
            parse(f"path:a#sha256={SHA256}", "0" * 64)
        assert parse(f"path:a#sha256={SHA256}", SHA256).sha256 == SHA256

    def test_a_path(self, tmp_path):
        (tmp_path / "a.pth").write_bytes(CONTENT)
        assert locate(parse("path:a.pth", SHA256), tmp_path, tmp_path / "work") == tmp_path / "a.pth"
        with pytest.raises(UserError, match=f"{SHA256} instead of {'0' * 64}"):
            locate(parse("path:a.pth", "0" * 64), tmp_path, tmp_path / "work")
        assert (tmp_path / "a.pth").exists()
        with pytest.raises(UserError, match=r"path:b\.pth.*no file and holds no model\.json"):
            locate(parse("path:b.pth"), tmp_path, tmp_path / "work")

    def test_a_pinned_model_folder_is_copied(self, tmp_path):
        (tmp_path / "released").mkdir()
        for name in ("model.json", "model.safetensors", "other"):
            (tmp_path / "released" / name).write_text(name)
        copy_pinned("path:released", tmp_path, tmp_path / "out", tmp_path / "work")
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.json", "model.safetensors"]
        with pytest.raises(UserError, match="instead of"):
            copy_pinned(f"path:released#sha256={SHA256}", tmp_path, tmp_path / "out", tmp_path / "work")
        with pytest.raises(UserError, match="is a file"):
            copy_pinned("path:released/other", tmp_path, tmp_path / "out", tmp_path / "work")


def test_a_model_folder_is_fetched_by_the_names_that_models_are_written_by():
    from crt.models import checkpoint
    from crt.references import locate as module

    assert (module.INFO, module.WEIGHTS) == (checkpoint.INFO, checkpoint.WEIGHTS)
