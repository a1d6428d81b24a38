"""Streams a multipart upload into the store: the file never sits in memory, and a broken upload leaves nothing."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
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
    """A finished upload: stored files with their names at the sender's, by part; and the other fields of the form."""

    files: dict[str, list[tuple[StoredFile, str]]]
    fields: dict[str, str]


class _Text(BaseTarget):  # type: ignore[misc] # the library has no types
    """Gathers a short field."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.value: bytes | None = None

    def on_start(self) -> None:
        if self.value is not None:
            raise _repeated(self.name)
        self.value = b""

    def on_data_received(self, chunk: bytes) -> None:
        self.value = (self.value or b"") + bytes(chunk)
        if len(self.value) > MAX_FIELD:
            raise InvalidInput.at(self.name, msg=f"must be at most {MAX_FIELD} bytes", type="too_long")


class _Files(BaseTarget):  # type: ignore[misc] # the library has no types
    """Gathers what the parser finds of the files of one part until they are written, `most` files at most."""

    def __init__(self, name: str, most: int) -> None:
        super().__init__()
        self.name = name
        self.most = most
        self.names: list[str] = []
        self.pieces: list[tuple[int, bytes]] = []  # (which file, what came of it)
        self.gathered = 0

    def on_start(self) -> None:
        if len(self.names) == self.most:
            raise _repeated(self.name)
        self.names.append(_filename(self))

    def on_data_received(self, chunk: bytes) -> None:
        self.pieces.append((len(self.names) - 1, bytes(chunk)))
        self.gathered += len(chunk)

    def take(self) -> list[tuple[int, bytes]]:
        """(which file, bytes) since the last time, one entry a file."""
        joined = [(at, b"".join(piece for _, piece in run)) for at, run in groupby(self.pieces, key=itemgetter(0))]
        self.pieces, self.gathered = [], 0
        return joined


def _repeated(name: str) -> InvalidInput:
    return InvalidInput.at(name, msg="the form has this part too often; send it once", type="repeated")


class _Writers:
    """A file in the store for each file of the form, and how much may still come."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._limit = platform.settings.gateway.max_upload_mb << 20
        self._writers: dict[tuple[str, int], Writer] = {}

    async def write(self, part: _Files) -> None:
        """What the part has gathered."""
        for at in range(len(part.names)):  # also files of which nothing came
            if (part.name, at) not in self._writers:
                self._writers[part.name, at] = await self._platform.store.writer()
        for at, data in part.take():
            await self._writers[part.name, at].write(data)

    def check(self, parts: list[_Files]) -> None:
        """PayloadTooLarge when all files together are over the limit."""
        if sum(w.size for w in self._writers.values()) + sum(part.gathered for part in parts) > self._limit:
            raise PayloadTooLarge(f"the upload is larger than {self._limit >> 20} MiB (AIMASS_GATEWAY_MAX_UPLOAD_MB)")

    async def commit(self, part: _Files, path: Callable[[str], str]) -> list[tuple[StoredFile, str]]:
        """The part's files, kept as `path` of their names."""
        found = []
        for at, name in enumerate(part.names):
            writer = self._writers[part.name, at]
            if not writer.size:
                raise InvalidInput.at(part.name, msg=f"the file '{name}' is empty", type="empty_file")
            found.append((await commit(self._platform, writer, path(name)), name))
        return found

    async def abort(self) -> None:
        """Remove what was not kept."""
        for writer in self._writers.values():
            await writer.abort()


@dataclass(frozen=True, slots=True)
class Form:
    """What a form takes: file parts by name (how many files, and how their names become paths), and text parts.

    The first file part is required. `check` may refuse the texts and the names of the files before anything is kept.
    """

    files: Mapping[str, tuple[int, Callable[[str], str]]]
    texts: tuple[str, ...]
    check: Callable[[dict[str, str], dict[str, list[str]]], None]


async def receive_upload(request: Request, platform: Platform, form: Form) -> Upload:
    """The files in the store, and the fields.

    InvalidInput for a body that is no multipart form, is cut off, or lacks the file; PayloadTooLarge over the limit.
    """
    boundary = _boundary(request)
    parser = StreamingFormDataParser({"Content-Type": f'multipart/form-data; boundary="{boundary}"'}, strict=True)
    files = [_Files(name, most) for name, (most, _) in form.files.items()]
    texts = [_Text(name) for name in form.texts]
    for file in files:
        parser.register(file.name, file)
    for text in texts:
        parser.register(text.name, text)
    writers = _Writers(platform)
    try:
        end = await _pump(request.stream(), parser, files, writers)
        required = files[0]
        if f"--{boundary}--".encode() not in end:
            msg = "the upload ended before its closing boundary; send it again"
            raise InvalidInput.at(required.name, msg=msg, type="truncated")
        if not required.names:
            msg = f"the form has no part called '{required.name}'; send it as -F {required.name}=@PATH"
            raise InvalidInput.at(required.name, msg=msg, type="missing")
        values = {text.name: text.value.decode("utf-8", "replace") for text in texts if text.value}
        form.check(values, {part.name: part.names for part in files})
        kept = {part.name: await writers.commit(part, form.files[part.name][1]) for part in files}
    except ClientDisconnect:
        raise InvalidInput("the upload was cut off") from None
    finally:
        await writers.abort()
    return Upload(kept, values)


async def _pump(
    stream: AsyncIterator[bytes], parser: StreamingFormDataParser, files: list[_Files], writers: _Writers
) -> bytes:
    """Write the files as they come; the end of the body, for the closing boundary."""
    end = b""
    async for chunk in stream:
        if not chunk:
            continue
        end = (end + chunk)[-MAX_END:]
        try:
            parser.data_received(chunk)
        except UnexpectedPartException as error:
            msg = "there is no such part; remove it or correct its name"
            raise InvalidInput.at(str(error.part_name)[:100], msg=msg, type="extra_forbidden") from None
        except ParseFailedException:
            raise InvalidInput.at(
                "body", msg="is not a well-formed multipart/form-data body", type="malformed"
            ) from None
        writers.check(files)
        for part in files:
            if part.gathered >= BATCH_BYTES:
                await writers.write(part)
    for part in files:
        await writers.write(part)
    return end


def _boundary(request: Request) -> str:
    """What separates the parts, from the Content-Type."""
    found = _CONTENT_TYPE.match(request.headers.get("content-type", ""))
    if found is None:
        raise InvalidInput.at(
            "Content-Type",
            msg="must be multipart/form-data with a boundary: send -F NAME=VALUE and -F NAME=@PATH",
        )
    return found["quoted"] or found["plain"]


def _filename(target: BaseTarget) -> str:
    """The sender's file name without any folder; it is shown, never used as a path."""
    name = str(target.multipart_filename or "upload")
    if "%" in name:
        name = unquote(name)
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in name if c.isprintable())[:255] or "upload"
