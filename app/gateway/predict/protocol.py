"""uvicorn's HTTP protocol, with which an answer that is whole takes one call and one write.

uvicorn takes the head and the body of an answer in two messages and writes them apart, which uvloop makes two system
calls: at high rates a fifth of a request's time. Use this one as `uvicorn.Config(app, http=JoiningProtocol)`; it offers
the ASGI extension WHOLE_ANSWER, and everything else is uvicorn's.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.gateway.predict.ports import Send

# In `scope["extensions"]`: (send, status, headers, body) → True if the answer was sent, False if it has to go by
# messages. The headers go out as they are: they must be safe, and hold the body's content-length.
WHOLE_ANSWER = "aimass.whole_answer"
WholeAnswer = Callable[[Send, int, Iterable[tuple[bytes, bytes]], bytes], bool]
_LARGE = 64 * 1024  # bytes; copying more to join it costs more than the call


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

    def on_message_begin(self) -> None:
        """Offer the extension to the request that begins."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = _EXTENSIONS
