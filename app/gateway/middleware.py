"""What every request through FastAPI gets: an id, a bounded body, safe headers, an answer even to our mistakes."""

import logging
import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.ids import new_id
from app.gateway.errors import PROBLEM_TYPE, problem_body

log = logging.getLogger("aimass.http")
_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
UPLOAD_PATHS = ("/api/v1/datasets",)


class RequestMiddleware:
    """Pure ASGI, so that streams stay streams."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key: value for key, value in scope["headers"] if key in (b"x-request-id", b"content-length")}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                out["x-content-type-options"] = "nosniff"
            await send(message)

        limited = scope["path"] not in UPLOAD_PATHS  # uploads are streamed and count for themselves
        if limited and int(headers.get(b"content-length") or 0) > self._max_body:
            await self._refuse(answer, request_id)
            return
        try:
            await self._app(scope, self._bounded(receive) if limited else receive, answer)
        except _TooLargeError:
            await self._refuse(answer, request_id)
        except Exception:
            log.exception("request %s %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise
            body = problem_body(500, "internal", "internal error; the log has it under this request id", request_id)
            await _answer(answer, 500, body)

    def _bounded(self, receive: Receive) -> Receive:
        left = self._max_body

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLargeError
            return message

        return bounded

    async def _refuse(self, send: Send, request_id: str) -> None:
        detail = f"the body is larger than {self._max_body >> 20} MiB (AIMASS_GATEWAY_MAX_BODY_MB)"
        await _answer(send, 413, problem_body(413, "payload_too_large", detail, request_id))


class _TooLargeError(Exception):
    """The body grew over its limit while it was read."""


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
