"""uvicorn's HTTP protocol with one system call an answer instead of two.

uvicorn writes the head and the body of an answer separately and uvloop passes each on at once: at high rates those two
writes are half of the server's time. Use it as `uvicorn.Config(app, http=JoiningProtocol)`.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LARGE = 64 * 1024  # bytes; copying more to join it costs more than the call


class JoiningTransport:
    """Holds a first write back until the second, or the next turn of the event loop; all else is the transport's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data`, possibly together with the next write."""
        if self._held:
            head, self._held = self._held, b""
            if len(data) > _LARGE:
                self._transport.write(head)
                self._transport.write(data)
            else:
                self._transport.write(head + data)
        elif len(data) > _LARGE:
            self._transport.write(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what is held back and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            head, self._held = self._held, b""
            self._transport.write(head)


class JoiningProtocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools, writing through a JoiningTransport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own narrowing
        """Wrap the connection's transport."""
        super().connection_made(cast("asyncio.Transport", JoiningTransport(transport, self.loop)))
