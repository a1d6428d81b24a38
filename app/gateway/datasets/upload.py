"""Streams a multipart upload into the store: the file never sits in memory, and a broken upload leaves nothing."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from fastapi import Request
from starlette.requests import ClientDisconnect
from streaming_form_data import StreamingFormDataParser
from streaming_form_data.parser import ParseFailedException
from streaming_form_data.targets import BaseTarget, ValueTarget
from streaming_form_data.validators import MaxSizeValidator, ValidationError

from app.core.errors import InvalidInput, PayloadTooLarge
from app.core.resources import StoredFile
from app.services.keep_files import commit
from app.services.platform import Platform
from app.services.upload_dataset import ORIGINAL
from app.store.ports import Writer

MAX_FIELD = 4096
BATCH_BYTES = 1 << 20  # what is gathered before a hand-over to the store's thread


@dataclass(frozen=True, slots=True)
class Upload:
    """A finished upload: the stored file, its name at the sender's, and the other fields of the form."""

    file: StoredFile
    filename: str
    fields: dict[str, str]


class _FileTarget(BaseTarget):  # type: ignore[misc] # the library has no types
    """Gathers what the parser finds of the file until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[bytes] = []
        self.gathered = 0
        self.seen = False
        self.finished = False

    def on_start(self) -> None:
        self.seen = True

    def on_data_received(self, chunk: bytes) -> None:
        self.chunks.append(bytes(chunk))
        self.gathered += len(chunk)

    def on_finish(self) -> None:
        self.finished = True

    def take(self) -> bytes:
        """What was gathered since the last time."""
        data, self.chunks, self.gathered = b"".join(self.chunks), [], 0
        return data


async def receive_upload(request: Request, platform: Platform, fields: tuple[str, ...]) -> Upload:
    """The part `file` in the store, and the text parts named in `fields`.

    InvalidInput for a body that is no multipart form, is cut off, or lacks the file; PayloadTooLarge over the limit.
    """
    target = _FileTarget()
    texts: dict[str, Any] = {name: ValueTarget(validator=MaxSizeValidator(MAX_FIELD)) for name in fields}
    parser = StreamingFormDataParser(headers=_content_type(request))
    parser.register("file", target)
    for name, text in texts.items():
        parser.register(name, text)
    limit = platform.settings.gateway.max_upload_mb << 20
    writer = await platform.store.writer()
    try:
        await _pump(request.stream(), parser, target, writer, limit)
        if not target.seen:
            raise InvalidInput.at(
                "file", msg="the form has no part called 'file'; send the data as -F file=@PATH", type="missing"
            )
        if not target.finished:
            raise InvalidInput.at(
                "file", msg="the upload ended before its closing boundary; send it again", type="truncated"
            )
        file = await commit(platform, writer, ORIGINAL)
    except ClientDisconnect:
        raise InvalidInput("the upload was cut off") from None
    finally:
        await writer.abort()
    values = {name: text.value.decode("utf-8", "replace") for name, text in texts.items() if text.value}
    return Upload(file, _filename(target), values)


async def _pump(
    stream: AsyncIterator[bytes], parser: StreamingFormDataParser, target: _FileTarget, writer: Writer, limit: int
) -> None:
    async for chunk in stream:
        if not chunk:
            continue
        try:
            parser.data_received(chunk)
        except ValidationError:
            raise InvalidInput(f"a text field of the form is longer than {MAX_FIELD} bytes") from None
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


def _content_type(request: Request) -> dict[str, str]:
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data") or "boundary=" not in content_type:
        raise InvalidInput.at(
            "Content-Type", msg="must be multipart/form-data with a boundary: send -F name=… -F file=@PATH"
        )
    return {"Content-Type": content_type}


def _filename(target: _FileTarget) -> str:
    """The sender's file name without any folder; it is shown, never used as a path."""
    name = str(target.multipart_filename or "upload")
    if "%" in name:
        name = unquote(name)
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in name if c.isprintable())[:255] or "upload"
