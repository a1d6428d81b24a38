"""The gateway processes of the same launcher, each of which answers at a unix socket of its own too."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import orjson

from app.settings import Settings

_ASK_S = 1.0  # a process that takes longer would answer nobody else either
_LIVE = b"GET /livez HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"


def other_sockets(settings: Settings, number: int | None) -> dict[int, Path]:
    """Where the launcher's other gateway processes answer, by number; none without a launcher."""
    if number is None:
        return {}
    return {n: settings.gateway_socket(n) for n in range(settings.gateway.processes) if n != number}


async def any_loaded(gateways: Iterable[Path]) -> bool:
    """True if one of the processes at these sockets answers, and has loaded its endpoints."""
    return any(await asyncio.gather(*map(_has_loaded, gateways)))


async def _has_loaded(gateway: Path) -> bool:
    """By hand: a client library would stay in the memory of each process."""
    try:
        async with asyncio.timeout(_ASK_S):
            reader, writer = await asyncio.open_unix_connection(gateway)
            try:
                writer.write(_LIVE)
                answer = await reader.read()
            finally:
                writer.close()
        return bool(orjson.loads(answer.partition(b"\r\n\r\n")[2])["status"] == "ok")
    except (OSError, TimeoutError, ValueError, LookupError, TypeError):  # it was broken off, or says something else
        return False
