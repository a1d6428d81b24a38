"""Text files in class folders as one table: `text`, `label`, and `split` where each path names one."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from app.core.errors import InvalidInput
from app.settings import LimitSettings
from workers.data.encoding import guess_codec, is_mixed, is_utf8
from workers.data.findings import Findings, Tick, unreadable
from workers.data.pictures import label_of, split_of
from workers.data.sniff import HEAD_BYTES, looks_binary, utf16_without_bom
from workers.data.table import TableWriter
from workers.data.unpack import Member

EXTENSIONS = (".txt", ".text")
_BATCH_ROWS, _BATCH_CHARACTERS = 2000, 16 << 20
_SAMPLE = 1 << 20  # bytes of files that are not UTF-8, from which their encoding is guessed
_TICK_ROWS = 200
_UTF8 = "utf-8-sig"
_ZEROS = 0.2  # of the bytes: UTF-16 of Latin letters holds more, UTF-8 with a stray NUL fewer


def are_texts(found: list[Member]) -> bool:
    """True for text files in the folders of two classes or more; some of one folder may as well be tables."""
    return len({label_of(m.name) for m in found if m.name.lower().endswith(EXTENSIONS)} - {None}) > 1


def write_texts(
    found: list[Member], target: Path, findings: Findings, limits: LimitSettings, tick: Tick
) -> TableWriter:
    """Read every text and write the good ones; the label is the innermost folder, NUL characters are taken out.

    Files that are not UTF-8 or UTF-16 share one encoding, which is guessed from them together, since one file may be
    too short to tell. Each file is read twice, so that none has to be kept. InvalidData if no text is left.
    """
    reader = _Reader(found, findings, limits, tick)
    with_split = all(split_of(m.name) for m in found if m.name.lower().endswith(EXTENSIONS) and label_of(m.name))
    with TableWriter(target) as writer:
        for frame in reader.frames(with_split=with_split):
            writer.write(frame)
    if not writer.rows:
        raise unreadable(f"the archive holds no usable text; first: {findings.first_rejection()}")
    if with_split:
        findings.warn('the folders train, validation and test are in the column split; use it by {"column": "split"}')
    return writer


class _Reader:
    """The members of an archive, and the encoding of those that are not Unicode."""

    def __init__(self, found: list[Member], findings: Findings, limits: LimitSettings, tick: Tick) -> None:
        self.found, self.findings, self.limits, self.tick = found, findings, limits, tick
        self.legacy = self._guess()

    def frames(self, *, with_split: bool) -> Iterator[pl.DataFrame]:
        """Rows in the archive's order, some at a time; what is no text is rejected by name."""
        names = ["text", "label", "split"] if with_split else ["text", "label"]
        rows: list[tuple[str | None, ...]] = []
        held = 0
        for i, member in enumerate(self.found):
            try:
                text = self._decode(self._raw(member))
            except InvalidInput as error:
                self.findings.reject(error.detail, path=member.name)
            else:
                rows.append((text, label_of(member.name), split_of(member.name))[: len(names)])
                held += len(text)
            if rows and (len(rows) >= _BATCH_ROWS or held >= _BATCH_CHARACTERS):
                yield pl.DataFrame(rows, dict.fromkeys(names, pl.String), orient="row")
                rows, held = [], 0
            if i % _TICK_ROWS == 0:
                self.tick(0.5 + i / len(self.found) / 2, f"{i:,} of {len(self.found):,} files read")
        if rows:
            yield pl.DataFrame(rows, dict.fromkeys(names, pl.String), orient="row")

    def _guess(self) -> str | None:
        """The encoding of the files that are not Unicode; None if there are none."""
        sample: list[bytes] = []
        size = 0
        for i, member in enumerate(self.found):
            if i % _TICK_ROWS == 0:
                self.tick(i / len(self.found) / 2, f"{i:,} of {len(self.found):,} files looked at")
            try:
                raw = self._raw(member)
            except InvalidInput:
                continue  # told of when rows are written
            if _unicode(raw) is None and size < _SAMPLE:
                sample.append(raw)
                size += len(raw)
        if not sample:
            return None
        codec = guess_codec(b"\n".join(sample)[:_SAMPLE])
        self.findings.warn(
            f"some files are not UTF-8; read as {codec.upper()}: look at some texts, and save the files as UTF-8 if "
            "they are wrong"
        )
        return codec

    def _raw(self, member: Member) -> bytes:
        """The bytes of a file that may be a text. InvalidData: it is none, by its place, name, size or bytes."""
        if not label_of(member.name):
            raise unreadable("not in a class folder; put texts in folders named after their classes")
        if not member.name.lower().endswith(EXTENSIONS):
            raise unreadable("not a text by its name (.txt)")
        if member.size_bytes > self.limits.line_mb << 20:
            raise unreadable(f"larger than {self.limits.line_mb:,} MiB (AIMASS_LIMIT_LINE_MB), so split it")
        raw = member.read()
        if not raw:
            raise unreadable("the file is empty")
        if _unicode(raw) is None and (looks_binary(raw[:HEAD_BYTES]) or is_mixed(raw.splitlines())):
            raise unreadable("binary data, or UTF-8 with damaged bytes")
        return raw

    def _decode(self, raw: bytes) -> str:
        codec = _unicode(raw) or self.legacy or _UTF8
        try:
            text = raw.decode(codec).replace("\0", "").strip()
        except UnicodeDecodeError:
            raise unreadable(f"it holds bytes that are no {codec.upper()}; save it as UTF-8") from None
        if not text:
            raise unreadable("the file holds blanks only")
        return text


def _unicode(raw: bytes) -> str | None:
    """The Unicode encoding of a text, or None."""
    head = raw[:HEAD_BYTES]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if is_utf8(raw) and raw.count(0) < _ZEROS * len(raw):
        return None if looks_binary(head) else _UTF8
    utf16 = utf16_without_bom(head)
    return None if utf16 is None or looks_binary(head.decode(utf16, "replace").encode()) else utf16
