"""One HTTP request and its answer on bare ASGI: bounded body, request id, compression, error bodies."""

import itertools
import math
import os
import re
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from app.core.errors import AimassError, Malformed, Unauthenticated
from app.gateway.errors import PROBLEM_TYPE, STATUS, error_json, problem_body, problem_headers
from app.gateway.predict.bodies import SMALL_BODY, Bodies
from app.gateway.predict.encodings import negotiate, pack, pack_pieces, too_large, unpack
from app.gateway.predict.ports import Receive, Scope, Send
from app.gateway.predict.protocol import WHOLE_ANSWER, WholeAnswer
from app.gateway.trace import Trace, continue_trace
from app.serving.types import Pieces

if TYPE_CHECKING:
    from app.telemetry.metrics import ModelMetrics

# Clients of the Open Inference Protocol expect 400 for any bad request.
OIP_STATUS = STATUS | dict.fromkeys(("invalid_input", "invalid_tensor"), 400)
Headers = list[tuple[bytes, bytes]]
JSON = (b"content-type", b"application/json")
READS = ("GET", "HEAD")  # the server leaves out the body of an answer to HEAD, which load balancers ask with
_PROBLEM = (b"content-type", PROBLEM_TYPE.encode())
_WHOLE = re.compile(rb"[0-9]{1,15}")
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_SMALLEST_COMPRESSED = 1024  # bytes; below, the work is worth more than the bytes
LARGE = 1 << 20  # bytes of an answer that counts until it is taken
_BEARER = b"bearer "
_prefix = os.urandom(8).hex()
_counter = itertools.count()


class ClientGone(Exception):
    """The client closed the connection before its request was whole, or before the answer."""


class MethodNotAllowed(Exception):
    """The path exists for another verb, which is the argument."""


class Exchange:
    """A request being answered."""

    __slots__ = (
        "bodies",
        "headers",
        "held",
        "method",
        "metrics",
        "path",
        "phases",
        "receive",
        "received",
        "request_id",
        "send",
        "started",
        "status",
        "trace",
        "whole",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, bodies: Bodies) -> None:
        self.started = self.received = time.perf_counter()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = headers = dict[bytes, bytes](scope["headers"])
        self.receive = receive
        self.send = send
        extensions = scope.get("extensions")
        self.whole: WholeAnswer | None = extensions.get(WHOLE_ANSWER) if extensions else None
        given = headers.get(b"x-request-id")
        # Unique per process start and request; a UUID would cost as much as decoding the body.
        self.request_id = given.decode() if given and _ID.fullmatch(given) else f"{_prefix}{next(_counter):08x}"
        traceparent = headers.get(b"traceparent")
        self.trace: Trace | None = continue_trace(traceparent) if traceparent else None
        self.status = 0
        self.bodies = bodies
        self.held = 0  # bytes of `bodies`, which are to be given back once the request is answered
        self.phases: tuple[float, ...] = ()  # of a prediction that was answered, in the order of PHASES, in seconds
        self.metrics: ModelMetrics | None = None  # of the model that the request is for, once it is found

    def key(self) -> bytes:
        """The API key that the caller presents; Unauthenticated without one. An empty X-API-Key is none."""
        key = self.headers.get(b"x-api-key")
        if not key:
            header = self.headers.get(b"authorization", b"")
            key = header[len(_BEARER) :].strip()
            if not key or header[: len(_BEARER)].lower() != _BEARER:
                raise Unauthenticated("send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        return key

    async def body(self, limit: int) -> bytes:
        """The whole body, decompressed; PayloadTooLarge above `limit` bytes, before or after decompression.

        Overloaded if the process holds too many bodies: before this one is read if its announced length is too much
        already. What has come of it is held, not what was announced.
        """
        announced = self.headers.get(b"content-length")
        if announced is not None and (size := int(announced)) > SMALL_BODY:
            if size > limit:
                raise too_large(limit)
            self.bodies.check(size)
        message = await self.receive()
        body: bytes = message.get("body", b"")
        if len(body) > SMALL_BODY:
            self.held = self.bodies.grow(self.held, len(body))
        if message.get("more_body"):
            body = await self._rest(body, limit)
        elif message["type"] == "http.disconnect":
            raise ClientGone
        self.received = time.perf_counter()
        if encoding := self.headers.get(b"content-encoding"):
            body = await unpack(body, encoding, limit)
            self.held = self.bodies.grow(self.held, len(body))
        return body

    def deadline(self, timeout_s: float | None = None) -> float:
        """When the caller stops waiting, on `perf_counter`'s clock: `timeout_s` or header X-Request-Timeout-Ms."""
        header = self.headers.get(b"x-request-timeout-ms")
        if header is not None:
            millis = whole_number(header, "X-Request-Timeout-Ms", "milliseconds")
            timeout_s = min(millis / 1e3, timeout_s or math.inf)
        return math.inf if timeout_s is None else self.started + timeout_s

    async def until_gone(self) -> None:
        """Return when the client has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        """Send the whole answer."""
        if len(body) > LARGE:
            await self._large(status, [body], headers)
            return
        self.status = status
        headers += ((b"content-length", b"%d" % len(body)), (b"x-request-id", self.request_id.encode()))
        if self.trace is not None:
            headers.append((b"traceparent", self.trace.header))
        if self.whole is None or not self.whole(self.send, status, headers, body):
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})

    def compressed(self, status: int, body: bytes, headers: Headers) -> Awaitable[None]:
        """As `answer`, compressed if the caller accepts it and it is worth it."""
        accepted = self.headers.get(b"accept-encoding")
        if accepted and len(body) >= _SMALLEST_COMPRESSED and (encoding := negotiate(accepted)):
            return self._packed(status, body, headers, encoding)
        return self.answer(status, body, headers)

    async def in_pieces(self, status: int, pieces: Pieces, headers: Headers) -> None:
        """As `compressed`, for what is large."""
        accepted = self.headers.get(b"accept-encoding")
        if accepted and (encoding := negotiate(accepted)):
            headers += ((b"content-encoding", encoding), (b"vary", b"accept-encoding"))
            pieces = await pack_pieces(pieces, encoding)
        await self._large(status, pieces, headers)

    async def _large(self, status: int, pieces: Pieces, headers: Headers) -> None:
        """Send an answer that counts among the bodies, and is not refused for it, until its client has taken it."""
        self.status = status
        size = sum(map(len, pieces))
        headers += ((b"content-length", b"%d" % size), (b"x-request-id", self.request_id.encode()))
        if self.trace is not None:
            headers.append((b"traceparent", self.trace.header))
        self.bodies.take(size, math.inf)
        self.held += size
        self.bodies.trim_later()
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        pieces.reverse()
        while pieces:
            await self.send({"type": "http.response.body", "body": pieces.pop(), "more_body": True})
        await self.send({"type": "http.response.body", "body": b""})  # which waits until there is room for more

    async def _packed(self, status: int, body: bytes, headers: Headers, encoding: bytes) -> None:
        headers += ((b"content-encoding", encoding), (b"vary", b"accept-encoding"))
        await self.answer(status, await pack(body, encoding), headers)

    async def oip_error(self, detail: str, status: int, headers: Headers) -> None:
        """The error as Open Inference Protocol clients read it."""
        await self.answer(status, error_json({"error": detail}), [JSON, *headers])

    async def refuse(self, error: AimassError, *, oip: bool) -> None:
        """Answer with an error of the tree, in the form of the path's protocol."""
        status = (OIP_STATUS if oip else STATUS)[error.code]
        headers = [(name.encode(), value.encode()) for name, value in problem_headers(error, status).items()]
        if oip:
            await self.oip_error(error.detail, status, headers)
        else:
            body = problem_body(status, error.code, error.detail, self.request_id, error.errors)
            await self.answer(status, body, [_PROBLEM, *headers])

    async def wrong_method(self, allowed: str, *, oip: bool) -> None:
        """Answer 405."""
        headers = [(b"allow", allowed.encode())]
        if oip:
            await self.oip_error("Method Not Allowed", 405, headers)
        else:
            body = problem_body(405, "method_not_allowed", f"only {allowed} is possible here", self.request_id)
            await self.answer(405, body, [_PROBLEM, *headers])

    async def _rest(self, first: bytes, limit: int) -> bytes:
        parts, size, more = [first], len(first), True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > limit:
                raise too_large(limit)
            self.held = self.bodies.grow(self.held, size)
            more = message.get("more_body", False)
        return b"".join(parts)


def whole_number(value: bytes, header: str, unit: str) -> int:
    """A header's value as a number; Malformed if it is not one."""
    if not _WHOLE.fullmatch(value):
        raise Malformed.at(header, msg=f"must be a whole number of {unit}, in at most 15 digits")
    return int(value)
