"""Files of the Hugging Face hub, from a real server on loopback that answers as the hub does."""

import hashlib
import json

import numpy as np
import pytest
from http_server import serve, server
from huggingface_hub import constants

from crt.errors import UserError
from crt.references.locate import locate, parse

CONTENT = b"\x80\x02" + np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "/who/teacher/resolve/{}/a/model.safetensors"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub with one file, in one repository, under a commit and a tag."""
    with server() as web:
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for revision in (COMMIT, "v1.0"):
            web.routes[FILE.format(revision)] = stored(web)
        web.routes["/cdn/blob"] = serve(CONTENT)
        refs = [{"name": name, "ref": "r", "targetCommit": COMMIT} for name in ("main", "v1.0")]
        body = json.dumps({"branches": refs[:1], "tags": refs[1:], "converts": []}).encode()
        web.routes["/api/models/who/teacher/refs"] = lambda h: h.send(
            200, body, Content_Type="application/json"
        )
        yield web


def stored(web, etag=SHA256):
    """The answer for a large file: its hash, and where its bytes are, which is another host."""
    place = web.url.replace("127.0.0.1", "localhost") + "/cdn/blob"
    return lambda handler: handler.send(
        302,
        X_Linked_Etag=f'"{etag}"',
        X_Linked_Size=str(len(CONTENT)),
        X_Repo_Commit=COMMIT,
        Location=place,
    )


def refused(status, code=""):
    return lambda handler: handler.send(status, X_Error_Code=code)


def find(tmp_path, ref, sha256=None):
    return locate(parse(ref, sha256), tmp_path, tmp_path / "work")


def said(tmp_path, ref, sha256=SHA256):
    with pytest.raises(UserError) as error:
        find(tmp_path, ref, sha256)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_commit_fixes_the_file_and_it_is_downloaded_once(hub, tmp_path):
    ref = f"hf://who/teacher@{COMMIT}/a/model.safetensors"
    place = find(tmp_path, ref)
    assert place.read_bytes() == CONTENT
    assert place.name == "model.safetensors"
    seen = len(hub.requests)
    assert find(tmp_path, ref) == place
    assert len(hub.requests) == seen


def test_a_tag_needs_a_hash(hub, tmp_path):
    assert "can change, since 'v1.0' is no commit hash" in said(
        tmp_path, "hf://who/teacher@v1.0/a/model.safetensors", None
    )
    assert not hub.requests
    assert find(tmp_path, "hf://who/teacher@v1.0/a/model.safetensors", SHA256).read_bytes() == CONTENT
    assert f"{SHA256} instead of {'0' * 64}" in said(
        tmp_path, "hf://who/teacher@v1.0/a/model.safetensors", "0" * 64
    )


def test_a_download_that_breaks_off_continues(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.routes["/cdn/blob"] = serve(CONTENT, cut_first=1_500_000)
    assert find(tmp_path, f"hf://who/teacher@{COMMIT}/a/model.safetensors").read_bytes() == CONTENT
    first, second = [request["range"] for request in hub.requests if request["path"] == "/cdn/blob"]
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").partition("-")[0]) <= 1_500_000


def test_other_bytes_than_the_hub_states_are_refused_and_not_kept(hub, tmp_path):
    ref = f"hf://who/teacher@{COMMIT}/a/model.safetensors"
    hub.routes["/cdn/blob"] = serve(CONTENT[:-1] + b"x")
    assert f"instead of {SHA256}" in said(tmp_path, ref, None)
    hub.routes["/cdn/blob"] = serve(CONTENT)
    assert find(tmp_path, ref).read_bytes() == CONTENT


@pytest.mark.parametrize("variable", [True, False])
def test_a_gated_file_is_read_with_a_token(hub, tmp_path, monkeypatch, variable):
    ref = f"hf://who/teacher@{COMMIT}/a/model.safetensors"
    allowed = stored(hub)

    def gated(handler):
        if handler.headers.get("authorization") == "Bearer hf_secret":
            allowed(handler)
        else:
            handler.send(401, X_Error_Code="GatedRepo")

    hub.routes[FILE.format(COMMIT)] = gated
    assert "who/teacher on the hub is gated" in said(tmp_path, ref)
    if variable:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
    else:  # what `hf auth login` writes
        (tmp_path / "token").write_text("hf_secret")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert find(tmp_path, ref).read_bytes() == CONTENT
    sent = [(request["path"], request["authorization"]) for request in hub.requests]
    assert sent[-2:] == [(FILE.format(COMMIT), "Bearer hf_secret"), ("/cdn/blob", None)]


def test_a_token_goes_over_no_open_line(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://example.org")
    assert "use https://" in said(tmp_path, f"hf://who/teacher@{COMMIT}/a/model.safetensors")


def test_a_private_or_unknown_repository(hub, tmp_path):
    hub.routes["/nobody/nothing/resolve/v1.0/b"] = refused(401, "RepoNotFound")
    message = said(tmp_path, "hf://nobody/nothing@v1.0/b")
    assert "no repository nobody/nothing" in message
    assert "HF_TOKEN" in message


def test_an_unknown_revision_lists_the_known_ones(hub, tmp_path):
    hub.routes["/who/teacher/resolve/v9/a"] = refused(404, "RevisionNotFound")
    assert "no revision 'v9': choose one of v1.0, main" in said(tmp_path, "hf://who/teacher@v9/a")


def test_an_unknown_file(hub, tmp_path):
    hub.routes["/who/teacher/resolve/v1.0/b"] = refused(404, "EntryNotFound")
    assert "has no file 'b'" in said(tmp_path, "hf://who/teacher@v1.0/b")


def test_a_hub_that_fails_and_one_that_is_not_there(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the pauses between the attempts
    hub.routes[FILE.format(COMMIT)] = refused(500)
    assert "500" in said(tmp_path, f"hf://who/teacher@{COMMIT}/a/model.safetensors")
    hub.routes[FILE.format(COMMIT)] = lambda handler: handler.send(200, b"<html>a proxy's page</html>")
    assert "could not be downloaded" in said(tmp_path, f"hf://who/teacher@{COMMIT}/a/model.safetensors")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "refused" in said(tmp_path, f"hf://who/teacher@{COMMIT}/a/model.safetensors")


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("hf://who/teacher/a/model.safetensors", "has no revision"),
        ("hf://who/teacher@v1.0/../../x", "unknown form"),
    ],
)
def test_references_that_name_no_file_of_a_revision(hub, tmp_path, ref, says):
    assert says in said(tmp_path, ref)
    assert not hub.requests
