"""What every request through FastAPI gets: an id, its trace, a bounded body, safe headers, an answer to mistakes."""

import logging
import re
import time
from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import AimassError, FieldError, Overloaded, PayloadTooLarge
from app.core.ids import new_id
from app.gateway.errors import PROBLEM_TYPE, STATUS, problem_body, problem_headers
from app.gateway.predict.bodies import Bodies
from app.gateway.trace import Trace, begin_trace, continue_trace, export, name_request
from app.telemetry.spans import Exporter

log = logging.getLogger("aimass.http")
_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_READ = (b"x-request-id", b"content-length", b"content-encoding", b"traceparent")
_UPLOAD = re.compile(r"/api/v1/(?:datasets|models/[^/]+/versions)")  # streamed; they count for themselves


class RequestMiddleware:
    """Pure ASGI, so that streams stay streams."""

    def __init__(self, app: ASGIApp, max_body: int, bodies: Bodies, exporter: Exporter | None = None) -> None:
        self._app = app
        self._bodies = bodies
        self._exporter = exporter
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limited = not _UPLOAD.fullmatch(scope["path"]) or _is_json(scope)
        begun = time.perf_counter()
        request = _Request(scope, receive, send, self._bodies if limited else None, self._max_body)
        if self._exporter is not None and request.trace is None:
            request.trace = begin_trace(self._exporter)
        try:
            await self._answer(scope, request)
        finally:
            self._bodies.give_back(request.held)
            if self._exporter is not None and request.trace is not None:
                _export(self._exporter, request.trace, scope, request, time.perf_counter() - begun)

    async def _answer(self, scope: Scope, request: "_Request") -> None:
        scope.setdefault("state", {})["request_id"] = request.id
        if refusal := request.check(request.announced):
            await request.refuse_with(refusal)
        elif "\0" in scope["path"] or b"%00" in scope["query_string"]:
            await request.refuse(400, "malformed", "the address holds a NUL character, which no name has")
        elif request.encoding not in (b"", b"identity"):
            detail = "Content-Encoding: only prediction bodies may be compressed; send this one as it is"
            errors = [FieldError(("Content-Encoding",), "must be absent here", "header")]
            await request.refuse(400, "malformed", detail, errors)
        else:
            await self._pass_on(scope, request)

    async def _pass_on(self, scope: Scope, request: "_Request") -> None:
        try:
            await self._app(scope, request.receive, request.answer)
        except Exception:
            if request.refusal is None:
                name = name_request(request.id, request.trace)
                log.exception("%s %s %r failed", name, scope["method"], scope["path"])
                if request.started:
                    raise
                await request.refuse(500, "internal", "internal error; the log has it under this request id")
        if request.refusal is not None and not request.started:
            await request.refuse_with(request.refusal)


def _is_json(scope: Scope) -> bool:
    """True for a body that is read whole."""
    return any(key == b"content-type" and value.startswith(b"application/json") for key, value in scope["headers"])


class _Request:
    """One request: its id, how much of its body was read and is held, whether its answer has begun.

    The body is bounded by `most`, and with all others by `bodies`; without `bodies` by neither.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, bodies: Bodies | None, most: int) -> None:
        headers = {key: value for key, value in scope["headers"] if key in _READ}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if _ID.fullmatch(given) else new_id()
        self.trace = continue_trace(headers.get(b"traceparent", b""))
        self.encoding = headers.get(b"content-encoding", b"").strip().lower()
        self.announced = int(headers.get(b"content-length") or 0)
        self.held = 0  # bytes of `bodies`, which are to be given back
        self.refusal: AimassError | None = None  # because of what was read of the body
        self.started = False
        self.status = 0
        self._bodies = bodies
        self._most = most
        self._read = 0
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """The next message; _RefusedError once more was sent than may be."""
        message = await self._receive()
        self._read += len(message.get("body", b""))
        self.refusal = self.refusal or self.check(self._read)
        if self.refusal is not None:
            raise _RefusedError
        if self._bodies is not None:
            self.held = self._bodies.grow(self.held, self._read)
        return message

    def check(self, size: int) -> AimassError | None:
        """The error if so many bytes of the body, all together, are too many; only those that have come are held."""
        if self._bodies is None:
            return None
        if size > self._most:
            return PayloadTooLarge(f"the body is larger than {self._most >> 20} MiB (AIMASS_GATEWAY_MAX_BODY_MB)")
        try:
            self._bodies.check(size, self.held)
        except Overloaded as error:
            return error
        return None

    async def answer(self, message: Message) -> None:
        """Send what the application answers, unless the body was refused: it takes the failed read for bad JSON."""
        if self.refusal is None:
            await self._pass(message)

    async def refuse_with(self, error: AimassError) -> None:
        """Send an error of the tree."""
        status = STATUS[error.code]
        more = [(name.encode(), value.encode()) for name, value in problem_headers(error, status).items()]
        await self.refuse(status, error.code, error.detail, error.errors, more)

    async def refuse(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[FieldError] = (),
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send a problem."""
        body = problem_body(status, code, detail, self.id, errors)
        headers = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", b"%d" % len(body)), *more]
        await self._pass({"type": "http.response.start", "status": status, "headers": headers})
        await self._pass({"type": "http.response.body", "body": body})

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            out = MutableHeaders(scope=message)
            out["x-request-id"] = self.id
            out["x-content-type-options"] = "nosniff"
            if self.trace is not None:
                out["traceparent"] = self.trace.header.decode()
        await self._send(message)


def _export(exporter: Exporter, trace: Trace, scope: Scope, request: _Request, seconds: float) -> None:
    route = scope.get("route")  # FastAPI's, once it has matched; its path has no ids and so is a name
    path = getattr(route, "path", None) or "unknown path"
    told = {"http.request.method": scope["method"], "url.path": scope["path"], "aimass.request_id": request.id}
    export(exporter, trace, f"{scope['method']} {path}", seconds, request.status, told)


class _RefusedError(Exception):
    """The body grew over a limit while it was read."""
