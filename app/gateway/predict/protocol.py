"""uvicorn's HTTP protocol, with which an answer that is whole takes one call and one write.

uvicorn takes the head and the body of an answer in two messages and writes them apart, which uvloop makes two system
calls: at high rates a fifth of a request's time. Use this one as `uvicorn.Config(app, http=JoiningProtocol)`; it offers
the ASGI extension WHOLE_ANSWER, and everything else is uvicorn's.

It also knows what its client owes the server, for app.gateway.patience; uvicorn itself waits for ever for the rest of a
request that has begun. That module ends idle connections as well, so that a request sets no timer and cancels none.
"""

import asyncio
import fcntl
import sys
import termios
from collections.abc import Callable, Iterable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.gateway.predict.ports import Send

# In `scope["extensions"]`: (send, status, headers, body) → True if the answer was sent, False if it has to go by
# messages. The headers go out as they are: they must be safe, and hold the body's content-length.
WHOLE_ANSWER = "aimass.whole_answer"
WholeAnswer = Callable[[Send, int, Iterable[tuple[bytes, bytes]], bytes], bool]
_LARGE = 64 * 1024  # bytes; copying more to join it costs more than the call
BODY_STEP = 64 * 1024  # bytes of a body, or of an answer, that count as progress
# Bytes in a row that are of no body and begin no request: heads, trailers. What one read has brought may come on top.
MOST_HEAD = 64 * 1024
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: text/plain\r\n"
    b"content-length: 57\r\n\r\nThe request's headers are larger than 64 KiB; send less.\n"
)
_INVALID = "Invalid HTTP request received."
_UPGRADES = (b"connection", b"upgrade", b"http2-settings")


def _answer(send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
    """What two messages to `send` do, for the common case; False, and nothing is done, in any other."""
    cycle = getattr(send, "__self__", None)
    if (
        not isinstance(cycle, RequestResponseCycle)  # something stands between, and wants the messages
        or cycle.disconnected
        or cycle.response_started
        or cycle.flow.write_paused
        or cycle.access_log
        or cycle.default_headers
        or cycle.scope["method"] == "HEAD"
    ):
        return False
    parts = [STATUS_LINE[status]]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
    if len(body) <= _LARGE:
        parts.append(body)
    cycle.transport.write(b"".join(parts))
    if len(body) > _LARGE:
        cycle.transport.write(body)
    cycle.waiting_for_100_continue = False
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


# One for all requests: an object that knew its request would be in a reference cycle with it.
_EXTENSIONS: dict[str, WholeAnswer] = {WHOLE_ANSWER: _answer}


class JoiningProtocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools that offers WHOLE_ANSWER."""

    begun = 0  # requests
    received = 0  # bytes of their bodies
    _head = 0  # bytes since either has changed
    _resumed = 0  # times that so much of an answer was taken that more could be written
    _answered: float | None = None  # on the loop's clock, between two requests

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but heads have an end, and a request that asks for another protocol is answered in this one."""
        self._answered = None
        begun, received = self.begun, self.received
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._without_upgrade(memoryview(data), upgrade.args[0])  # what follows may be no HTTP either
        except httptools.HttpParserError:
            self.logger.warning(_INVALID)
            self.send_400_response(_INVALID)
        if begun == self.begun and received == self.received:
            self._head += len(data)
            if self._head > MOST_HEAD:
                self._refuse_head()
        else:
            self._head = 0

    def on_headers_complete(self) -> None:
        """Begin the request, unless the parser stops here and `data_received` will feed it once more."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """As uvicorn's, but that `on_headers_complete` may not have begun the request."""
        if not self.parser.should_upgrade() and not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def _without_upgrade(self, data: memoryview, at: int) -> None:
        """Go on with HTTP/1.1, as RFC 9110 (7.8) lets a server do; httptools takes what follows for another protocol.

        Java's own client asks every server for HTTP/2 like this. `at` is where the head ends in `data`. HttpParserError
        if what follows is no HTTP.
        """
        while True:
            head = self._plain_head()
            if head is None:
                self.send_400_response(_INVALID)
                return
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
            try:
                self.parser.feed_data(head)
                data = data[at:]
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:  # of the next request
                at = upgrade.args[0]
            else:
                return

    def _plain_head(self) -> bytes | None:
        """The head that was read, without what asks for another protocol; None of CONNECT, which is for proxies."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            return None
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name not in _UPGRADES]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            lines.append(b"connection: close")
        return b"\r\n".join([*lines, b"", b""])

    def _refuse_head(self) -> None:
        """Answer 431, unless an answer to the same request or the one before is under way, and close."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if not busy and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
        self.transport.close()

    def on_message_begin(self) -> None:
        """Offer the extension to the request that begins."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = _EXTENSIONS
        self.begun += 1

    def on_body(self, body: bytes) -> None:
        """Count it."""
        self.received += len(body)
        super().on_body(body)

    @property
    def idle_since(self) -> float | None:
        """When the last answer was sent; None if something has come since, or the connection is being closed."""
        return None if self.transport.is_closing() else self._answered

    @property
    def reads_head(self) -> bool:
        """A request has begun to come, and its head is not whole."""
        return self.idle_since is None and self._owed() == "head"

    def awaited(self) -> object | None:
        """What the client of a connection that is not idle owes the server, equal for as long as it makes no progress.

        The rest of a request, or to take an answer; None if it owes nothing.
        """
        match self._owed():
            case "head":
                return "head", self.begun
            case "body":
                return "body", self.begun, self.received // BODY_STEP
            case "answer":
                return "answer", self._resumed, self._untaken() // BODY_STEP
        return None

    def _owed(self) -> str | None:
        cycle: RequestResponseCycle | None = self.cycle
        if self.transport.is_closing():
            return "answer"
        if not self.begun or "path" not in self.scope:
            if cycle is None or cycle.response_complete:  # otherwise the request before is not done with
                return "head"
        elif self.cycle.response_complete or (self.cycle.more_body and not self._kept_waiting()):
            return "body"
        return "answer" if self.flow.write_paused else None  # the application waits to write more

    def _untaken(self) -> int:
        """Bytes of answers that the client's system has not acknowledged.

        What the kernel has of them counts: that can be megabytes, which a slow client takes a long time for.
        """
        waiting = self.transport.get_write_buffer_size()
        connection = self.transport.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:
            return waiting
        return waiting + int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def resume_writing(self) -> None:
        """Count it: what waits then may be as much at two looks, and other bytes."""
        self._resumed += 1
        super().resume_writing()

    def on_response_complete(self) -> None:
        """As uvicorn's, without a timer."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._answered = self.loop.time()

    def _unset_keepalive_if_required(self) -> None:
        """Nothing will come any more."""
        self._answered = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's
        """As uvicorn's, but the task takes itself off the list that a server waits for when it ends."""
        self.tasks.add(self.loop.create_task(self._run(cycle, app)))

    async def _run(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's
        try:
            await cycle.run_asgi(app)
        finally:
            self.tasks.discard(cast("asyncio.Task[None]", asyncio.current_task(self.loop)))

    def _kept_waiting(self) -> bool:
        """True if it is the server that does not take the rest of the body yet."""
        return self.flow.read_paused or self.cycle.waiting_for_100_continue or bool(self.pipeline)

    def expire(self) -> None:
        """Close the connection of a client that did not do what it owed; 408 if no answer to what it sent has begun."""
        if self._owed() == "answer":  # who does not read gets no last word
            self.transport.abort()
            return
        if self.begun and ("path" not in self.scope or not self.cycle.response_started):
            self.transport.write(_TIMED_OUT)
        self.transport.close()
