"""Files from the store: downloads with range requests, as an attachment unless made to be looked at; small JSON."""

import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from app.core.resources import StoredFile
from app.gateway.errors import PROBLEM_TYPE, problem_body
from app.services.keep_files import stored
from app.services.platform import Platform

_LOCKED = "sandbox"  # no script, form or plug-in, and an origin of its own
_SHOWN = f"{_LOCKED}; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_RANGE = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$")


async def download(
    request: Request, platform: Platform, file: StoredFile, filename: str, shown_as: str | None = None
) -> Response:
    """The file, or the part that a single-range `Range` header asks for (206), or 416.

    With the media type `shown_as` a browser shows it, sandboxed: it may hold what a user has written.

    Unavailable when the store does not give the file: its first chunk is there before the answer begins.
    """
    headers = {
        "content-disposition": f"{'inline' if shown_as else 'attachment'}; filename*=UTF-8''{quote(filename)}",
        "accept-ranges": "bytes",
        "etag": f'"{file.sha256}"',
        "content-security-policy": _SHOWN if shown_as else _LOCKED,
    }
    span = _span(request.headers.get("range"), file.bytes)
    if span is None:
        detail = f"Range: the file has {file.bytes} bytes, and none of those asked for"
        body = problem_body(416, "range_not_satisfiable", detail, request.state.request_id)
        return Response(body, 416, {"content-range": f"bytes */{file.bytes}"}, PROBLEM_TYPE)
    start, end = span
    headers["content-length"] = str(end - start)
    partial = (start, end) != (0, file.bytes)
    if partial:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    chunks = platform.store.read(file.sha256, start, end)
    with stored(f"'{file.path}'"):
        first = await anext(chunks, b"")
    return StreamingResponse(
        _chain(first, chunks), 206 if partial else 200, headers, shown_as or "application/octet-stream"
    )


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


async def read_json(platform: Platform, file: StoredFile) -> dict[str, Any]:
    """A small stored file that one of our jobs has written. Unavailable when the store does not give it."""
    with stored(f"'{file.path}'"):
        raw = b"".join([chunk async for chunk in platform.store.read(file.sha256)])
    parsed: dict[str, Any] = orjson.loads(raw)
    return parsed


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """[start, end) of a Range header; the whole file for none, or for a form to be ignored; None: unsatisfiable."""
    match = _RANGE.match(header or "")
    if match is None or (not match[1] and not match[2]):
        return 0, size
    if not match[1]:
        wanted = int(match[2])
        return (max(0, size - wanted), size) if wanted else None
    start = int(match[1])
    end = min(size, int(match[2]) + 1) if match[2] else size
    return (start, end) if start < end else None
