"""Text files of any encoding as lines, bounded in length and with bad bytes named by line."""

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from charset_normalizer import from_bytes

from workers.data.findings import Findings, unreadable
from workers.data.sniff import read_head, utf16_without_bom

_CHUNK = 1 << 20
_SAMPLE_LINES = 2000
# What tables in the wild are saved in, besides UTF; the likelier first, since short samples fit several. A closed
# list: an open one finds exotic twins.
_LEGACY = ["gb18030", "cp1252", "cp1251", "big5", "shift_jis", "euc_kr", "euc_jp"]
_MIXED_SHARE = 0.1  # of non-ASCII lines that are UTF-8: above, the file is UTF-8 with damaged lines


@dataclass(frozen=True, slots=True)
class Encoding:
    """A Python codec; `damaged` if some bytes of the file do not decode."""

    codec: str
    damaged: bool = False


def detect_encoding(path: Path, findings: Findings) -> Encoding:
    """The file's encoding from its byte order mark, or else from all of its bytes; a guess is warned about."""
    head = read_head(path)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Encoding("utf-16", damaged=not _decodes(path, "utf-16"))
    if utf16 := utf16_without_bom(head):
        findings.warn(
            f"read as {utf16.upper()}, which has no byte order mark; save the file as UTF-8 if cells look wrong"
        )
        return Encoding(utf16, damaged=not _decodes(path, utf16))
    if _decodes(path, "utf-8-sig"):
        return Encoding("utf-8-sig")
    codec = "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else _guess(path)
    if codec == "utf-8-sig":
        return Encoding(codec, damaged=True)
    findings.warn(
        f"the file is not UTF-8; read as {codec.upper()}: look at some cells, and save it as UTF-8 if they are wrong"
    )
    return Encoding(codec, damaged=not _decodes(path, codec))


def _decodes(path: Path, codec: str) -> bool:
    decoder = codecs.getincrementaldecoder(codec)()
    with path.open("rb") as file:
        try:
            while chunk := file.read(_CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _guess(path: Path) -> str:
    """Among UTF-8 with damaged lines and the legacy encodings, by the lines that are not ASCII."""
    sample: list[bytes] = []
    with path.open("rb") as file:
        while len(sample) < _SAMPLE_LINES and (line := file.readline(_CHUNK)):
            if not line.isascii():
                sample.append(line)
    return "utf-8-sig" if is_mixed(sample) else guess_codec(b"".join(sample)[:_CHUNK])


def is_mixed(lines: list[bytes]) -> bool:
    """True if lines that are not UTF-8 stand among those that are, which no legacy encoding looks like."""
    sample = [line for line in lines if not line.isascii()]
    return sum(map(is_utf8, sample)) >= _MIXED_SHARE * len(sample)


def guess_codec(sample: bytes) -> str:
    """The likeliest legacy encoding of text that is not UTF-8."""
    matches = from_bytes(sample, cp_isolation=_LEGACY)
    ranked = sorted(matches, key=lambda m: (m.chaos, -m.coherence, _LEGACY.index(m.encoding)))
    return ranked[0].encoding if ranked else "cp1252"


def is_utf8(line: bytes) -> bool:
    """True if the bytes are whole UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(slots=True)
class Lines:
    """Iterates over the physical lines of a text file, ends included; LF, CRLF and CR all end a line.

    `bad` holds the numbers of lines (1-based) that do not decode; `nul_lines` counts those that held NUL characters,
    which are taken out. InvalidData for a line over `max_chars`.
    """

    path: Path
    encoding: Encoding
    max_chars: int
    number: int = 0
    chars: int = 0
    nul_lines: int = 0
    bad: set[int] = field(default_factory=set)

    def __iter__(self) -> Iterator[str]:
        errors = "surrogateescape" if self.encoding.damaged else "strict"
        if self.encoding.codec.startswith("utf-16") and self.encoding.damaged:
            errors = "replace"  # its units are no single bytes that could be escaped
        with self.path.open("rb") as raw, io.TextIOWrapper(raw, self.encoding.codec, errors, newline="") as text:
            limit, damaged = self.max_chars + 1, self.encoding.damaged
            while line := text.readline(limit):
                self.number += 1
                self.chars += len(line)
                if len(line) == limit:
                    raise unreadable(
                        f"line {self.number} has over {self.max_chars:,} characters (AIMASS_LIMIT_LINE_MB); "
                        "is a line end or a closing quote missing?"
                    )
                if damaged and not line.isascii() and not _encodes(line):
                    self.bad.add(self.number)
                if "\0" in line:
                    line = line.replace("\0", "")
                    self.nul_lines += 1
                yield line


def _encodes(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return "\ufffd" not in line
