"""Streams a multipart upload into the store: the file never sits in memory, and a broken upload leaves nothing."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.core.errors import InvalidInput, PayloadTooLarge
from app.core.resources import StoredFile
from app.gateway.form import Files, FormReader, Text
from app.services.keep_files import commit
from app.services.platform import Platform
from app.store.ports import Writer

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


class _Writers:
    """A file in the store for each file of the form, and how much may still come."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._limit = platform.settings.gateway.max_upload_mb << 20
        self._writers: dict[tuple[str, int], Writer] = {}

    async def write(self, part: Files) -> None:
        """What the part has gathered."""
        for at in range(len(part.names)):  # also files of which nothing came
            if (part.name, at) not in self._writers:
                self._writers[part.name, at] = await self._platform.store.writer()
        for at, data in part.take():
            await self._writers[part.name, at].write(data)

    def check(self, parts: list[Files]) -> None:
        """PayloadTooLarge when all files together are over the limit."""
        if sum(w.size for w in self._writers.values()) + sum(part.gathered for part in parts) > self._limit:
            raise PayloadTooLarge(f"the upload is larger than {self._limit >> 20} MiB (AIMASS_GATEWAY_MAX_UPLOAD_MB)")

    async def commit(self, part: Files, path: Callable[[str], str]) -> list[tuple[StoredFile, str]]:
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
    files = [Files(name, most) for name, (most, _) in form.files.items()]
    texts = [Text(name) for name in form.texts]
    reader = FormReader(_boundary(request), files, texts)
    writers = _Writers(platform)
    try:
        await _pump(request.stream(), reader, files, writers)
        required = files[0]
        if not reader.ended:
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


async def _pump(stream: AsyncIterator[bytes], reader: FormReader, files: list[Files], writers: _Writers) -> None:
    """Write the files as they come."""
    async for chunk in stream:
        reader.write(chunk)
        writers.check(files)
        for part in files:
            if part.gathered >= BATCH_BYTES:
                await writers.write(part)
    for part in files:
        await writers.write(part)


def _boundary(request: Request) -> str:
    """What separates the parts, from the Content-Type."""
    found = _CONTENT_TYPE.match(request.headers.get("content-type", ""))
    if found is None:
        raise InvalidInput.at(
            "Content-Type",
            msg="must be multipart/form-data with a boundary: send -F NAME=VALUE and -F NAME=@PATH",
        )
    return found["quoted"] or found["plain"]
