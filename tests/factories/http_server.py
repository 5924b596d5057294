"""A real HTTP server on loopback that misbehaves as it is told."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        seen = {"method": self.command, "path": self.path}
        seen |= {name: self.headers.get(name) for name in ("range", "authorization")}
        self.server.requests.append(seen)  # type: ignore[attr-defined]
        answer = self.server.routes.get(self.path, not_found)  # type: ignore[attr-defined]
        answer(self)

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass

    def send(self, status: int, body: bytes = b"", cut: int | None = None, **headers: str) -> None:
        """Send an answer; `cut`: only so many bytes of its body, and then hang up."""
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


Answer = Callable[[Handler], None]


def not_found(handler: Handler) -> None:
    handler.send(404)


def serve(content: bytes, cut_first: int | None = None, ranges: bool = True) -> Answer:
    """A file; the first answer is cut off after so many bytes."""
    cuts = [cut_first] if cut_first is not None else []

    def answer(handler: Handler) -> None:
        wanted = handler.headers.get("Range")
        cut = cuts.pop() if cuts else None
        if wanted is None or not ranges:
            handler.send(200, content, cut)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            handler.send(416, Content_Range=f"bytes */{len(content)}")
            return
        part = content[start:]
        handler.send(206, part, cut, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")

    return answer


def in_turn(*answers: Answer) -> Answer:
    """One answer after the other; the last one for good."""
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def slowly(content: bytes, parts: int, pause: float) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send(200, Content_Length=str(len(content)))
        size = len(content) // parts + 1
        for start in range(0, len(content), size):
            handler.wfile.write(content[start : start + size])
            handler.wfile.flush()
            time.sleep(pause)

    return answer


@contextmanager
def server() -> Iterator[ThreadingHTTPServer]:
    """The server, on a free port.

    `.routes` maps paths to answers, `.requests` lists what was asked, `.url` is its address.
    """
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.routes, httpd.requests = {}, []  # type: ignore[attr-defined]
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
