"""Streams a multipart upload into the store: the file never sits in memory, and a broken upload leaves nothing."""

import math
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import unquote

from fastapi import Request
from starlette.requests import ClientDisconnect
from streaming_form_data import StreamingFormDataParser
from streaming_form_data.parser import ParseFailedException, UnexpectedPartException
from streaming_form_data.targets import BaseTarget

from app.core.errors import InvalidInput, PayloadTooLarge
from app.core.resources import StoredFile
from app.services.keep_files import commit
from app.services.platform import Platform
from app.services.upload_dataset import ORIGINAL
from app.store.ports import Writer

MAX_FIELD = 4096
MAX_END = 4096  # bytes at the end of a body among which its closing boundary must be
# RFC 2046, 5.1.1: the characters that a boundary may have.
_CONTENT_TYPE = re.compile(
    r"""multipart/form-data\s*;(?:.*;)?\s*boundary=
        (?:"(?P<quoted>[0-9a-z'()+_,./:=?\ -]{0,69}[0-9a-z'()+_,./:=?-])"|(?P<plain>[0-9a-z'()+_,./:=?-]{1,70}))
        \s*(?:;.*)?$""",
    re.IGNORECASE | re.VERBOSE,
)
BATCH_BYTES = 1 << 20  # what is gathered before a hand-over to the store's thread


@dataclass(frozen=True, slots=True)
class Upload:
    """A finished upload: the stored file, its name at the sender's, and the other fields of the form."""

    file: StoredFile
    filename: str
    fields: dict[str, str]


class _Part(BaseTarget):  # type: ignore[misc] # the library has no types
    """Gathers what the parser finds of a part, at most `most` bytes at a time."""

    def __init__(self, name: str, most: float = math.inf) -> None:
        super().__init__()
        self.name = name
        self.most = most
        self.chunks: list[bytes] = []
        self.gathered = 0
        self.seen = False

    def on_start(self) -> None:
        if self.seen:
            raise InvalidInput.at(self.name, msg="the form has this part twice; send it once", type="repeated")
        self.seen = True

    def on_data_received(self, chunk: bytes) -> None:
        self.chunks.append(bytes(chunk))
        self.gathered += len(chunk)
        if self.gathered > self.most:
            raise InvalidInput.at(self.name, msg=f"must be at most {self.most:g} bytes", type="too_long")

    def take(self) -> bytes:
        """What was gathered since the last time."""
        data, self.chunks, self.gathered = b"".join(self.chunks), [], 0
        return data


async def receive_upload(
    request: Request, platform: Platform, fields: tuple[str, ...], check: Callable[[dict[str, str]], None]
) -> Upload:
    """The part `file` in the store, and the text parts named in `fields`, which `check` may refuse before it is kept.

    InvalidInput for a body that is no multipart form, is cut off, or lacks the file; PayloadTooLarge over the limit.
    """
    boundary = _boundary(request)
    parser = StreamingFormDataParser({"Content-Type": f'multipart/form-data; boundary="{boundary}"'}, strict=True)
    target, *texts = parts = [_Part("file"), *(_Part(name, MAX_FIELD) for name in fields)]
    for part in parts:
        parser.register(part.name, part)
    limit = platform.settings.gateway.max_upload_mb << 20
    writer = await platform.store.writer()
    try:
        end = await _pump(request.stream(), parser, target, writer, limit)
        if f"--{boundary}--".encode() not in end:
            raise InvalidInput.at(
                "file", msg="the upload ended before its closing boundary; send it again", type="truncated"
            )
        if not target.seen:
            raise InvalidInput.at(
                "file", msg="the form has no part called 'file'; send the data as -F file=@PATH", type="missing"
            )
        values = {text.name: text.take().decode("utf-8", "replace") for text in texts if text.gathered}
        check(values)
        if not writer.size:
            raise InvalidInput.at("file", msg="the file is empty; upload a file with data", type="empty_file")
        file = await commit(platform, writer, ORIGINAL)
    except ClientDisconnect:
        raise InvalidInput("the upload was cut off") from None
    finally:
        await writer.abort()
    return Upload(file, _filename(target), values)


async def _pump(
    stream: AsyncIterator[bytes], parser: StreamingFormDataParser, target: _Part, writer: Writer, limit: int
) -> bytes:
    """Write the file as it comes; the end of the body, for the closing boundary."""
    end = b""
    async for chunk in stream:
        if not chunk:
            continue
        end = (end + chunk)[-MAX_END:]
        try:
            parser.data_received(chunk)
        except UnexpectedPartException as error:
            msg = "there is no such part; the form takes file, name and kind"
            raise InvalidInput.at(str(error.part_name)[:100], msg=msg, type="extra_forbidden") from None
        except ParseFailedException:
            raise InvalidInput.at(
                "body", msg="is not a well-formed multipart/form-data body", type="malformed"
            ) from None
        if writer.size + target.gathered > limit:
            raise PayloadTooLarge(f"the file is larger than {limit >> 20} MiB (AIMASS_GATEWAY_MAX_UPLOAD_MB)")
        if target.gathered >= BATCH_BYTES:
            await writer.write(target.take())
    if target.gathered:
        await writer.write(target.take())
    return end


def _boundary(request: Request) -> str:
    """What separates the parts, from the Content-Type."""
    found = _CONTENT_TYPE.match(request.headers.get("content-type", ""))
    if found is None:
        raise InvalidInput.at(
            "Content-Type", msg="must be multipart/form-data with a boundary: send -F name=… -F file=@PATH"
        )
    return found["quoted"] or found["plain"]


def _filename(target: _Part) -> str:
    """The sender's file name without any folder; it is shown, never used as a path."""
    name = str(target.multipart_filename or "upload")
    if "%" in name:
        name = unquote(name)
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in name if c.isprintable())[:255] or "upload"
