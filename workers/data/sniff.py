"""What the bytes are. The file's name is a hint for messages only."""

from pathlib import Path
from typing import Literal

from workers.data.findings import unreadable

Format = Literal["delimited", "jsonl", "parquet", "arrow", "excel", "zip", "tar", "gzip", "idx", "picture"]
HEAD_BYTES = 64 << 10
TAKEN = (
    "CSV/TSV, JSON Lines, Parquet, Arrow or Excel (xlsx) tables (also gzipped or alone in a zip), "
    "and zip or tar archives of pictures in class folders"
)

_READABLE: tuple[tuple[int, bytes, Format], ...] = (
    (0, b"ARROW1\x00\x00", "arrow"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (257, b"ustar\x00", "tar"),
    (257, b"ustar ", "tar"),
    (0, b"\x00\x00\x08\x01", "idx"),
    (0, b"\x00\x00\x08\x03", "idx"),
    (0, b"\x89PNG\r\n\x1a\n", "picture"),
    (0, b"\xff\xd8\xff", "picture"),
    (0, b"GIF87a", "picture"),
    (0, b"GIF89a", "picture"),
    (0, b"II*\x00", "picture"),
    (0, b"MM\x00*", "picture"),
)
_REFUSED: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x80\x02", "a Python pickle, which is never opened"),
    (0, b"\x80\x03", "a Python pickle, which is never opened"),
    (0, b"\x80\x04", "a Python pickle, which is never opened"),
    (0, b"\x80\x05", "a Python pickle, which is never opened"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"ID3\x03", "an MP3 sound"),
    (0, b"ID3\x04", "an MP3 sound"),
    (0, b"OggS", "an Ogg sound"),
    (0, b"fLaC", "a FLAC sound"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\xd0\xcf\x11\xe0", "an old Excel or Word file; save it as xlsx or CSV"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"Obj\x01", "an Avro file; write it as Parquet"),
    (4, b"1AY&SY", "a bzip2 file; use gzip or no compression"),
    (0, b"\xfd7zXZ", "an xz file; use gzip or no compression"),
    (0, b"(\xb5/\xfd", "a zstd file; use gzip or no compression"),
    (0, b"7z\xbc\xaf", "a 7z archive; use zip or tar"),
    (0, b"Rar!", "a RAR archive; use zip or tar"),
    (0, b"\x7fELF", "a program"),
    (0, b"\xff\xfe\x00\x00", "UTF-32 text; save it as UTF-8"),
    (0, b"\x00\x00\xfe\xff", "UTF-32 text; save it as UTF-8"),
)
_MARKUP = (
    (b"<html", "an HTML page"),
    (b"<!doctype", "an HTML page"),
    (b"<script", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document"),
)
_MAX_CONTROL_SHARE = 0.02  # text holds tabs, line ends and the odd escape; binary formats hold far more


def sniff(path: Path, name: str) -> Format:
    """The format of a file by its first bytes. InvalidData says what it looks like if it is none that is taken."""
    head = read_head(path)
    if not head:
        raise unreadable("the file is empty (0 bytes); upload one with a header line and data")
    for offset, magic, found in _READABLE:
        if head.startswith(magic, offset):
            return found
    for offset, magic, word in _REFUSED:
        if head.startswith(magic, offset):
            raise refused(word)
    return _sniff_container(head) or _sniff_text(head, name)


def _sniff_container(head: bytes) -> Format | None:
    """Formats whose first bytes might begin a text as well, and need a second sign."""
    if head.startswith(b"PAR1\x15") or (head.startswith(b"PAR1") and looks_binary(head)):
        return "parquet"
    if head.startswith(b"\xff\xff\xff\xff") and head[6:8] == bytes(2):  # a stream: a mark, the length of the schema
        return "arrow"
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "picture"
    if head.startswith(b"RIFF"):
        if head[8:12] == b"WEBP":
            return "picture"
        if head[8:12] == b"WAVE":
            raise refused("a WAV sound")
    if head[4:7] == bytes(3) and head[8:9] == b"{":  # the length of the header, then the header
        raise refused("a safetensors file")
    return None


def refused(word: str) -> Exception:
    """InvalidData for a format that is not taken."""
    return unreadable(f"it looks like {word}; data sets are {TAKEN}")


def read_head(path: Path) -> bytes:
    """The first HEAD_BYTES bytes."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def utf16_without_bom(head: bytes) -> Literal["utf-16-le", "utf-16-be"] | None:
    """UTF-16 that lacks its mark: half of the bytes, the high or the low ones, hold all the zeros.

    Its line ends have one too, which tells it from a short ASCII file with a stray NUL.
    """
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = max(len(head) // 2, 1)
    if max(even, odd) < 0.05 * half or min(even, odd) > 0.005 * half:
        return None
    ends = (b"\0\n", b"\0\r") if even > odd else (b"\n\0", b"\r\0")
    if (b"\n" in head or b"\r" in head) and not any(end in head for end in ends):
        return None
    return "utf-16-be" if even > odd else "utf-16-le"


def _sniff_text(head: bytes, name: str) -> Format:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "delimited"
    if encoding := utf16_without_bom(head):
        head = head[: len(head) // 2 * 2].decode(encoding, "replace").encode()
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise unreadable("the file holds blanks only; upload one with a header line and data")
    for mark, word in _MARKUP:
        if text[:16].lower().startswith(mark):
            raise refused(word)
    if looks_binary(head):
        if name.lower().endswith(".onnx"):
            raise refused("an ONNX model, which is imported as a model version, not as a data set")
        raise refused("binary data of no known kind")
    if text.startswith(b"{"):
        return "jsonl"
    if text.startswith(b"[") and (name.lower().endswith(".json") or text[1:].lstrip()[:1] in {b"[", b"{"}):
        raise refused("a JSON document; write JSON Lines, one object a line")
    return "delimited"


def looks_binary(head: bytes) -> bool:
    """True if the first bytes of a file, at least one, hold more control characters than texts do."""
    if head[0] < 0x20 and head[:1] not in {b"\t", b"\n", b"\r", b"\f"}:  # noqa: PLR2004 - below the first printable character
        return True
    controls = sum(head.count(bytes([code])) for code in range(32) if code not in {9, 10, 12, 13, 27})
    return controls > max(3, _MAX_CONTROL_SHARE * len(head))
