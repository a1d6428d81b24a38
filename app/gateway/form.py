"""Reads a multipart form as it comes: short texts are gathered, files are handed on in pieces."""

import logging
from itertools import groupby
from operator import itemgetter
from typing import Protocol
from urllib.parse import unquote

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from app.core.errors import InvalidInput

MAX_FIELD = 4096  # bytes
_DISPOSITION = b"content-disposition"
# The parser warns of each mistake that it also raises; the sender is told, and the log is the operator's.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class _Part(Protocol):
    def begin(self, filename: str) -> None:
        """Another part of this name begins."""

    def receive(self, data: bytes) -> None:
        """A piece of it."""


class Text:
    """Gathers a short field."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: bytes | None = None

    def begin(self, filename: str) -> None:  # noqa: ARG002 - a text sent from a file is a text
        """InvalidInput if it was there before."""
        if self.value is not None:
            raise _repeated(self.name)
        self.value = b""

    def receive(self, data: bytes) -> None:
        """InvalidInput if it becomes too long."""
        self.value = (self.value or b"") + data
        if len(self.value) > MAX_FIELD:
            raise InvalidInput.at(self.name, msg=f"must be at most {MAX_FIELD} bytes", type="too_long")


class Files:
    """Gathers what has come of the files of one name until they are written, `most` files at most."""

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self.most = most
        self.names: list[str] = []
        self.pieces: list[tuple[int, bytes]] = []  # (which file, what came of it)
        self.gathered = 0  # bytes

    def begin(self, filename: str) -> None:
        """InvalidInput for one too many."""
        if len(self.names) == self.most:
            raise _repeated(self.name)
        self.names.append(_shown(filename))

    def receive(self, data: bytes) -> None:
        """Keep it for `take`."""
        self.pieces.append((len(self.names) - 1, data))
        self.gathered += len(data)

    def take(self) -> list[tuple[int, bytes]]:
        """(which file, bytes) since the last time, one entry a file."""
        joined = [(at, b"".join(piece for _, piece in run)) for at, run in groupby(self.pieces, key=itemgetter(0))]
        self.pieces, self.gathered = [], 0
        return joined


class FormReader:
    """Divides a body among the parts that the form may have; `ended` once the closing boundary has come."""

    def __init__(self, boundary: str, files: list[Files], texts: list[Text]) -> None:
        self.ended = False
        self._known: dict[str, _Part] = {file.name: file for file in files}
        self._known |= {text.name: text for text in texts}
        self._part: _Part | None = None
        self._header, self._value = b"", b""
        self._disposition = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        """The next bytes of the body. InvalidInput if they are no form, or hold a part that it does not have."""
        try:
            self._parser.write(data)
        except MultipartParseError:
            msg = "is not a well-formed multipart/form-data body"
            raise InvalidInput.at("body", msg=msg, type="malformed") from None

    def _begin(self) -> None:
        self._part, self._disposition = None, b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == _DISPOSITION:
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            msg = "has a part whose Content-Disposition names no field; give it a name"
            raise InvalidInput.at("body", msg=msg, type="malformed")
        self._part = self._known.get(name)
        if self._part is None:
            msg = "there is no such part; remove it or correct its name"
            raise InvalidInput.at(name[:100], msg=msg, type="extra_forbidden")
        self._part.begin(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part is not None:
            self._part.receive(data[start:end])

    def _end(self) -> None:
        self.ended = True


def _repeated(name: str) -> InvalidInput:
    return InvalidInput.at(name, msg="the form has this part too often; send it once", type="repeated")


def _shown(filename: str) -> str:
    """The sender's file name without any folder; it is shown, never used as a path."""
    name = unquote(filename) if "%" in filename else filename
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in name if c.isprintable())[:255] or "upload"
