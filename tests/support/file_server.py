"""A real HTTP server of one file, which misbehaves at some paths."""

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class FileServer(ThreadingHTTPServer):
    """`/a.csv` and most other paths are the file; `asked` are the paths that it was asked for."""

    def __init__(self, data: bytes, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.data = data
        self.asked: list[str] = []
        self.failures = 0  # so many requests are answered with 503
        self.stalling = True  # whether `/slow.csv` stops after its first bytes
        self.stalls, self.closing = threading.Event(), threading.Event()
        self.port: int = self.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def handle_error(self, *_: Any) -> None:
        """The other side has gone; that is its business."""

    def close(self) -> None:
        """Stop, also what stalls."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        data = self.server.data
        if self.server.failures:
            self.server.failures -= 1
            self._answer(503)
        elif path.startswith("/to/"):
            self._answer(302, location=path.removeprefix("/to/"))
        elif "/status/" in path:
            self._answer(int(path.rsplit("/", 1)[1]))
        elif path == "/short.csv":
            self._answer(200, data[:1000], 2000)
            self.close_connection = True
        elif path.endswith("/slow.csv") and self.server.stalling:
            self._answer(200, data[:1000], 2000)
            self.server.stalls.set()
            self.server.closing.wait()
        elif path == "/lie.csv":
            self._answer(200, length=1 << 40)
        elif path == "/endless.csv":
            self._endless()
        else:
            self._answer(200, b"" if path == "/empty.csv" else data, etag='"v1"')

    def _answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _endless(self) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for _ in range(64):
            self.wfile.write(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")

    def log_message(self, *_: Any) -> None: ...
