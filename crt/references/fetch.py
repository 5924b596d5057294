"""Download one file over HTTP: resumed where it broke off, checked against its SHA-256, complete or not there at all."""

import hashlib
import os
import re
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from crt.errors import UserError
from crt.files import partial

ATTEMPTS = 5
BACKOFF = 1.0  # seconds before the second attempt; doubled for each further one
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two parts of an answer
LARGEST = 32 * 2**30  # bytes; no classifier is larger
BLOCK = 1 << 20


class _BrokenOffError(Exception):
    """An attempt failed in a way that may pass."""


def download(url: str, target: Path, sha256: str) -> None:
    """Get `url` into the file `target`.

    Parts of it are kept in `target`.partial until it is whole, so that the next run goes on where this one broke off.

    Raises:
        UserError: it cannot be reached or is refused, is a web page, breaks off again and again, or has another hash.
    """
    _check_scheme(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = partial(target)
    reason = ""
    with requests.Session() as session:
        for attempt in range(ATTEMPTS):
            if attempt:
                wait = BACKOFF * 2 ** (attempt - 1)
                print(f"{url}: {reason}; trying again in {wait:g} s", file=sys.stderr)
                time.sleep(wait)
            try:
                _attempt(session, url, aside)
                break
            except _BrokenOffError as error:
                reason = str(error)
        else:
            raise UserError(f"{url} could not be downloaded ({reason}): run again to go on from there")
    found = sha256_of(aside)
    if found != sha256:
        aside.unlink()
        raise UserError(
            f"{url} has SHA-256 {found} instead of {sha256}: check the address and the hash; nothing of it is kept"
        )
    os.replace(aside, target)


def hub_address(repo: str, file: str, revision: str) -> tuple[str, str | None]:
    """The URL of a file on the Hugging Face hub (or HF_ENDPOINT), and its SHA-256 if `revision` fixes it.

    A full commit hash fixes the file, and the hub tells the SHA-256 of what lies in large file storage.

    Raises:
        UserError: no such repository, revision or file; known revisions are listed.
    """
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo, file, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"))
    _check_scheme(url)
    try:
        answer = requests.head(
            url, allow_redirects=False, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}
        )
    except requests.RequestException as error:
        raise UserError(
            f"the hub cannot be reached at {url} ({_reason(error)}): check the network or HF_ENDPOINT"
        ) from None
    missing = answer.headers.get("X-Error-Code", "")
    if missing == "RevisionNotFound":
        known = ", ".join(_hub_revisions(repo)) or "none"
        raise UserError(f"{repo} on the hub has no revision {revision!r}: choose one of {known}")
    if missing == "EntryNotFound":
        raise UserError(f"{repo}@{revision} on the hub has no file {file!r}: check its name")
    if answer.status_code >= 400:
        raise UserError(
            f"the hub answered {answer.status_code} {answer.reason} for {repo}@{revision}/{file}: "
            "check the repository's name and that you may read it"
        )
    etag = answer.headers.get("X-Linked-Etag", "").strip('"')
    fixed = is_commit(revision) and re.fullmatch(r"[0-9a-f]{64}", etag) is not None
    return url, etag if fixed else None


def is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def what_came_instead(start: bytes) -> str | None:
    """In words, what a file that begins so is, if it is a well-known thing that comes in place of weights."""
    text = start[:4096].lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        title = re.search(rb"<title[^>]*>(.*?)</title>", start, re.DOTALL | re.IGNORECASE)
        named = f" ({title[1].decode(errors='replace').strip()[:80]!r})" if title else ""
        return f"a web page{named}"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    if text.startswith((b'{"error', b'{"message')):
        return f"the message {start[:120].decode(errors='replace')!r}"
    return None


def _check_scheme(url: str) -> None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    loopback = host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None
    if not host or (parts.scheme != "https" and not (parts.scheme == "http" and loopback)):
        raise UserError(f"{url} is no address to download from: use https://")


def _attempt(session: requests.Session, url: str, aside: Path) -> None:
    """Get what is missing of `aside`."""
    have = aside.stat().st_size if aside.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with session.get(url, stream=True, timeout=TIMEOUT, headers=headers) as answer:
            _receive(answer, url, aside, have)
    except (
        requests.TooManyRedirects,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
    ) as error:
        raise UserError(f"{url} redirects to nowhere ({error}): give the direct address") from None
    except requests.RequestException as error:
        raise _BrokenOffError(_reason(error)) from None


def _receive(answer: requests.Response, url: str, aside: Path, have: int) -> None:
    status = f"the server answered {answer.status_code} {answer.reason}"
    if answer.status_code == 416:  # nothing is left to send, or the file has changed
        if answer.headers.get("Content-Range") == f"bytes */{have}":
            return
        aside.unlink()
        raise _BrokenOffError(status)
    if answer.status_code >= 500 or answer.status_code in (408, 429):
        raise _BrokenOffError(status)
    if answer.status_code >= 400:
        raise UserError(f"{url}: {status}: check the address and that you may read it")
    if answer.status_code == 206:
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            aside.unlink()
            raise _BrokenOffError("the server sent another part than it was asked for")
    else:
        have = 0  # this server sends everything or nothing
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    if (total or 0) > LARGEST:
        raise UserError(f"{url} has {total} bytes: more than any classifier's weights; check the address")
    with (
        aside.open("ab" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=url.rpartition("/")[2][:40]) as bar,
    ):
        for block in answer.iter_content(BLOCK):
            instead = what_came_instead(block) if file.tell() == 0 else None
            if instead is not None:
                aside.unlink()
                raise UserError(f"{url} gave {instead} instead of weights: give the file's direct address")
            file.write(block)
            bar.update(len(block))
            if file.tell() > LARGEST:
                aside.unlink()
                raise UserError(f"{url} does not end after {LARGEST} bytes: check the address")
        size = file.tell()
    if total is not None and size != total:
        raise _BrokenOffError(f"it broke off after {size} of {total} bytes")


def _hub_revisions(repo: str) -> list[str]:
    from huggingface_hub import HfApi

    refs = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).list_repo_refs(repo)
    return [ref.name for ref in (*refs.tags, *refs.branches)]


def _reason(error: Exception) -> str:
    """The innermost cause of a chain of libraries' errors, in few words."""
    text = str(error)
    for pattern in (r"IncompleteRead\((\d+) bytes read, (\d+) more expected\)", r"\[Errno -?\d+\] ([\w ]+)"):
        if match := re.search(pattern, text):
            more = f"{match[2]} bytes are missing" if match.lastindex == 2 else match[1].lower()
            return f"the connection broke off, {more}" if match.lastindex == 2 else more
    return "no answer in time" if "timed out" in text.lower() else text[:200]
