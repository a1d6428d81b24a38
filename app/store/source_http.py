"""Sources by HTTP: certificates are checked, and redirects are followed within the list.

The address that was checked is the one that is connected to, so that a name cannot mean another machine a moment later.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urljoin

import httpcore
import httpx

from app.core.errors import InvalidData, InvalidSpec, Unavailable
from app.store.allowed import Allowed, Uri
from app.store.ports import Source

MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_LATER = {408, 425, 429}  # and every 5xx: the same request may succeed later
_WAITS = {"connect": 15.0, "read": 30.0, "write": 30.0, "pool": 15.0}  # seconds for one step
_RETRY_S = 5.0
_HEADERS: dict[bytes | str, bytes | str] = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "aimass"}


@asynccontextmanager
async def open_http(uri: Uri, allowed: Allowed) -> AsyncIterator[Source]:
    """The source. InvalidData names `uri` where asking again is of no use; Unavailable where it may be."""
    backend = _Checked(allowed)
    async with httpcore.AsyncConnectionPool(httpx.create_ssl_context(), network_backend=backend) as pool:
        for _ in range(MAX_REDIRECTS + 1):
            with _asking():
                url = uri.place + uri.target
                async with pool.stream("GET", url, headers=_HEADERS, extensions={"timeout": _WAITS}) as answer:
                    if answer.status not in _REDIRECTS:
                        yield _source(answer)
                        return
                    uri = _redirected(uri, answer, allowed)
    raise _refused(f"redirects more than {MAX_REDIRECTS} times; name the file's own address")


def _source(answer: httpcore.Response) -> Source:
    """What a last answer says. The file is taken as it is on the wire; that it is packed shows in its bytes."""
    status = answer.status
    if status in _LATER or status >= 500:  # noqa: PLR2004 - errors of servers
        raise _later(f"its server answers with {status}")
    if status in {401, 403}:
        raise _refused(f"may not be read: its server answers with {status}; use an address that is open or signed")
    if status != 200:  # noqa: PLR2004 - a whole file
        raise _refused(f"is no file: its server answers with {status}; correct the address")
    headers = {name.lower(): value.decode("latin-1")[:200] for name, value in answer.headers}
    size = headers.get(b"content-length", "")
    return Source(
        int(size) if size.isdigit() else None,
        headers.get(b"etag"),
        headers.get(b"last-modified"),
        _chunks(answer),
    )


async def _chunks(answer: httpcore.Response) -> AsyncIterator[bytes]:
    with _asking():
        async for chunk in answer.aiter_stream():
            yield chunk


def _redirected(uri: Uri, answer: httpcore.Response, allowed: Allowed) -> Uri:
    """Where the answer points to, which has to be on the list as well."""
    location = next((value.decode("latin-1") for name, value in answer.headers if name.lower() == b"location"), "")
    if not location:
        raise _refused(f"is no file: its server answers with {answer.status} and no address; correct it")
    try:
        found = allowed.check(urljoin(uri.place + uri.target, location))
    except InvalidSpec as error:
        raise _refused(f"redirects to another address: {error.errors[0].msg}") from None
    except ValueError:
        raise _refused("redirects to what is no address; name the file's own") from None
    if found.scheme == "s3":
        raise _refused("redirects to a bucket, which browsers would not follow; name the object as s3://BUCKET/KEY")
    return found


@contextmanager
def _asking() -> Iterator[None]:
    """Unavailable for whatever the server, or the way to it, does not do."""
    try:
        yield
    except (httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException) as error:
        raise _later(f"{type(error).__name__} {error}".strip()[:300]) from None


def _later(why: str) -> Unavailable:
    return Unavailable(f"uri: the source cannot be read now: {why}", retry_after_s=_RETRY_S)


def _refused(msg: str) -> InvalidData:
    return InvalidData.at("uri", msg=msg)


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects to those addresses of a host that may be connected to."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address that takes one. InvalidData if none may be connected to."""
        found = await self._resolve(host, port)
        good = [address for address in found if self._allowed.may_connect(host, address)]
        if not good:
            raise _refused(
                f"'{host}' is in a private network, which this platform does not connect to unless the operator lists "
                "the network in AIMASS_SOURCES_NETWORKS"
            )
        for address in good[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(good[-1], port, timeout, local_address, socket_options)

    async def _resolve(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _later(f"'{host}' has no address: {error}") from None
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
