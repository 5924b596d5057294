"""Download one file over HTTP: checked against its SHA-256, complete or not there at all."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from crt.errors import UserError
from crt.files import replacing_file

RETRIES = 4
BACKOFF = 1.0  # seconds before the second retry; doubled for each further one
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two parts of an answer
LARGEST = 32 * 2**30  # bytes; no classifier is larger
BLOCK = 1 << 20


def download(url: str, target: Path, sha256: str) -> None:
    """Get `url` into the file `target`.

    Raises:
        UserError: It cannot be reached or is refused, is a web page, breaks off, or has another hash.
    """
    check_scheme(url)
    headers = {"Accept-Encoding": "identity"}
    try:
        with (
            replacing_file(target) as aside,
            _session() as session,
            session.get(url, stream=True, timeout=TIMEOUT, headers=headers) as answer,
        ):
            found = _receive(answer, url, aside)
            if found != sha256:
                raise UserError(
                    f"{url} has SHA-256 {found} instead of {sha256}: check the address and the hash; "
                    "nothing of it is kept"
                )
    except (
        requests.TooManyRedirects,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
    ) as error:
        raise UserError(f"{url} redirects to nowhere ({error}): give the direct address") from None
    except requests.RequestException as error:
        raise UserError(f"{url} could not be downloaded ({_reason(error)}): run again") from None


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def what_came_instead(start: bytes) -> str | None:
    """What a file that begins so is, in words, if it is a well-known thing that comes in place of weights."""
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


def check_scheme(url: str) -> None:
    """Check that an address is https, or http on this machine.

    Raises:
        UserError: It is another one.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    loopback = host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None
    if not host or (parts.scheme != "https" and not (parts.scheme == "http" and loopback)):
        raise UserError(f"{url} is no address to download from: use https://")


def _session() -> requests.Session:
    """Tries again where a connection fails or a server asks for it, after pauses of our own."""
    retry = Retry(
        RETRIES,
        backoff_factor=BACKOFF,
        status_forcelist=(408, 429, 500, 502, 503, 504),
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _receive(answer: requests.Response, url: str, aside: Path) -> str:
    """Write an answer's body to `aside`; its SHA-256, hex."""
    if answer.status_code >= 400:
        raise UserError(
            f"{url}: the server answered {answer.status_code} {answer.reason}: "
            "check the address and that you may read it"
        )
    total, size, digest = answer.raw.length_remaining, 0, hashlib.sha256()
    with (
        aside.open("wb") as file,
        tqdm(total=total, unit="B", unit_scale=True, desc=url.rpartition("/")[2][:40]) as bar,
    ):
        for block in answer.iter_content(BLOCK):
            instead = what_came_instead(block) if size == 0 else None
            if instead is not None:
                raise UserError(f"{url} gave {instead} instead of weights: give the file's direct address")
            size += len(block)
            if max(size, total or 0) > LARGEST:
                raise UserError(
                    f"{url} has more than {LARGEST} bytes, more than any classifier's weights: "
                    "check the address"
                )
            file.write(block)
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """The innermost cause of a chain of libraries' errors, in few words."""
    text = str(error)
    if match := re.search(r"IncompleteRead\(\d+ bytes read, (\d+) more expected\)", text):
        return f"the connection broke off, {match[1]} bytes are missing"
    if match := re.search(r"\[Errno -?\d+\] ([\w ]+)", text):
        return match[1].lower()
    return "no answer in time" if "timed out" in text.lower() else " ".join(text.split())[:200]
