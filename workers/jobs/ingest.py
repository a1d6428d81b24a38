"""The ingest job: an upload that nobody has checked becomes a typed Parquet file and its profile."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any, Literal

from app.core.errors import InvalidTensor
from app.serving.images import open_image
from app.settings import LimitSettings
from app.specs.data import DATA_FILE, PROFILE_FILE, IngestResult
from app.specs.jobs import IngestSpec
from workers.context import JobContext, Stopped
from workers.data import excel, pictures, text_files
from workers.data.arrow import read_arrow
from workers.data.delimited import read_delimited
from workers.data.findings import Findings, Tick, limits_from, listed, shorten, unreadable
from workers.data.jsonl import read_jsonl
from workers.data.parquet import read_parquet
from workers.data.preview import preview
from workers.data.profile import columns_of, profile_table
from workers.data.sniff import Format, refused, sniff
from workers.data.table import TableWriter, write_inferred
from workers.data.unpack import Budget, Member, gunzip, members

_READERS = {
    "delimited": read_delimited,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "excel": excel.read_excel,
}
_TYPED = {"parquet", "arrow"}  # their columns have types; those of the others are inferred
_TABLES = (".csv", ".tsv", ".tab", ".psv", ".parquet", ".arrow", ".feather", ".jsonl", ".ndjson")
_MAYBE_TABLES = (".txt", ".data", ".dat")
_TELLTALES = {
    "data.pkl": "a PyTorch checkpoint with a pickle in it, which is never opened",
    "[Content_Types].xml": "an Office file that is no Excel workbook (xlsx)",
    "META-INF/MANIFEST.MF": "a Java program",
}


def run(job: JobContext) -> dict[str, Any]:
    """Read `input/original`, write `output/data.parquet` and `output/profile.json`, and return an IngestResult.

    `job.spec` is an IngestSpec with the agent's LimitSettings under `limits`. InvalidData says what is wrong with the
    upload, where, and what to do. Nothing is written outside `job.output` and a scratch folder, which is removed.
    """
    given = dict(job.spec)
    limits = limits_from(given.pop("limits", None) or {})
    spec = IngestSpec.model_validate(given)
    scratch = job.folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    job.output.mkdir(exist_ok=True)
    collecting = gc.isenabled()
    gc.disable()  # rows of a table are millions of short-lived lists without cycles, which it would walk in vain
    try:
        return _Ingest(job, spec, limits, scratch).run().model_dump(mode="json")
    finally:
        if collecting:
            gc.enable()
        shutil.rmtree(scratch, ignore_errors=True)


class _Ingest:
    """One run: what every step needs."""

    def __init__(self, job: JobContext, spec: IngestSpec, limits: LimitSettings, scratch: Path) -> None:
        self.job, self.spec, self.limits, self.scratch = job, spec, limits, scratch
        self.findings = Findings()
        self.target = job.output / DATA_FILE

    def run(self) -> IngestResult:
        """Unwrap, read, write, profile."""
        path = self.job.input / "original"
        fmt = sniff(path, self.spec.filename)
        budget = Budget(path.stat().st_size, self.limits)
        if fmt == "gzip":
            path, fmt = self._gunzip(path, self.spec.filename, budget)
            budget = Budget(path.stat().st_size, self.limits)
        if fmt in {"zip", "tar"}:
            return self._archive(path, "zip" if fmt == "zip" else "tar", budget)
        if fmt == "picture":
            _refuse_single(path, self.limits)
        return self._table(path, fmt)

    def _gunzip(self, path: Path, name: str, budget: Budget) -> tuple[Path, Format]:
        self._tick(0.0, 0.05)(0.0, "unpacking")
        target = self.scratch / "unpacked"
        with path.open("rb") as source:
            gunzip(source, target, budget)
        fmt = sniff(target, name.removesuffix(".gz"))
        if fmt == "gzip":
            raise unreadable("it is gzipped twice; unpack one layer")
        return target, fmt

    def _archive(self, path: Path, kind: Literal["zip", "tar"], budget: Budget) -> IngestResult:
        with members(path, kind, budget, self.findings) as found:
            if any(member.name == excel.MEMBER for member in found):
                return self._workbook(path, found)
            _refuse_telltale(found)
            idx = any(pictures.IDX.match(m.name.rsplit("/", 1)[-1]) for m in found)
            seen = any(m.name.lower().endswith(pictures.EXTENSIONS) for m in found)
            if self.spec.format == "image" or (self.spec.format == "auto" and (idx or seen)):
                tick = self._tick(0.05, 0.9)
                if idx:
                    writer = pictures.write_idx(found, self.target, self.scratch, self.findings, budget, tick)
                else:
                    writer = pictures.write_folders(found, self.target, self.findings, self.limits, tick)
                entries = pictures.profile_pictures(self.target, writer, self.findings)
                self.findings.details |= {"format": "idx" if idx else "folders", "duplicate_rows": writer.repeated}
                return self._finish("image", writer.rows, entries)
            if not _ending(found, _TABLES) and text_files.are_texts(found):
                return self._texts(found)
            member = _only_table(found, self.findings)
            path = self.scratch / "member"
            member.copy(path)
        fmt = sniff(path, member.name)
        if fmt == "gzip":
            path, fmt = self._gunzip(path, member.name, budget)
        return self._table(path, fmt)

    def _texts(self, found: list[Member]) -> IngestResult:
        self.findings.details["format"] = "texts"
        tick = self._tick(0.05, 0.8)
        return self._profiled(text_files.write_texts(found, self.target, self.findings, self.limits, tick))

    def _workbook(self, path: Path, found: list[Member]) -> IngestResult:
        for member in found:  # what the archive says of their sizes may be a lie; the reader would believe it
            member.copy(self.scratch / "member")
        (self.scratch / "member").unlink()
        return self._table(path, "excel")

    def _table(self, path: Path, fmt: Format) -> IngestResult:
        if fmt not in _READERS:
            if fmt == "idx":
                raise unreadable("it is one idx file; upload a zip with the images-idx3 and the labels-idx1 file")
            raise refused(f"a {fmt} file where a table was expected")
        if self.spec.format == "image":
            raise unreadable(
                "it is a table, but pictures were announced (format: image); upload a zip of class folders"
            )
        self.findings.details["format"] = fmt
        read = self._tick(0.05, 0.6)
        batches = _READERS[fmt](path, self.findings, self.limits, read)
        if fmt in _TYPED:
            with TableWriter(self.target) as writer:
                for frame in batches:
                    writer.write(frame)
        else:
            writer = write_inferred(batches, self.target, self.scratch / "parts", self.findings, self._tick(0.6, 0.8))
        return self._profiled(writer)

    def _profiled(self, writer: TableWriter) -> IngestResult:
        entries = profile_table(self.target, self.findings, self._tick(0.8, 1.0))
        duplicates = writer.duplicate_rows()
        if duplicates:
            self.findings.warn(
                f"rows that repeat an earlier row: {duplicates:,}; the cleaning step drop_duplicates removes them"
            )
        self.findings.details["duplicate_rows"] = duplicates
        return self._finish("tabular", writer.rows, entries)

    def _finish(self, kind: Literal["tabular", "image"], rows: int, entries: list[dict[str, Any]]) -> IngestResult:
        findings = self.findings
        if findings.rejected_count:
            findings.warn(
                f"rows or files that could not be read and were left out: {findings.rejected_count:,}; "
                f"first: {findings.first_rejection()}"
            )
        result = IngestResult(
            kind=kind,
            rows=rows,
            columns=columns_of(entries),
            warnings=findings.warnings,
            rejected_count=findings.rejected_count,
            rejected_first=findings.rejected_first,
            details=findings.details,
        )
        profile = {**result.model_dump(mode="json"), "columns": entries, "preview": preview(self.target)}
        (self.job.output / PROFILE_FILE).write_text(
            json.dumps(profile, allow_nan=False, ensure_ascii=False), encoding="utf-8"
        )
        return result

    def _tick(self, low: float, high: float) -> Tick:
        """Progress within [low, high] of the job, about a hundred times at most; raises Stopped when asked to stop."""
        last = -1.0

        def tick(fraction: float, step: str) -> None:
            nonlocal last
            if self.job.should_stop():
                raise Stopped
            if fraction - last >= 0.01:  # noqa: PLR2004 - one percent
                last = fraction
                self.job.progress(low + (high - low) * fraction, step)

        return tick


def _refuse_single(path: Path, limits: LimitSettings) -> None:
    if path.stat().st_size > pictures.max_bytes(limits):
        raise unreadable("it is a single picture, and larger than any that is taken")
    try:
        open_image(path.read_bytes(), limits.image_megapixels)
    except InvalidTensor as error:
        raise unreadable(error.detail) from None
    raise unreadable("it is a single picture; upload a zip of pictures in folders named after their classes")


def _refuse_telltale(found: list[Member]) -> None:
    for member in found:
        for name, word in _TELLTALES.items():
            if member.name == name or member.name.endswith(f"/{name}"):
                raise refused(word)


def _only_table(found: list[Member], findings: Findings) -> Member:
    """The archive's one table. InvalidData if there are several or none."""
    tables = _ending(found, _TABLES) or _ending(found, _MAYBE_TABLES) or (found if len(found) == 1 else [])
    if not tables:
        raise unreadable(f"the archive holds neither a table nor pictures, but {listed([m.name for m in found])}")
    if len(tables) > 1:
        names = listed([m.name for m in tables])
        raise unreadable(f"the archive holds {len(tables)} tables ({names}); upload them one by one")
    others = [m.name for m in found if m is not tables[0]]
    findings.warn(f"read '{tables[0].name}' from the archive" + (f"; left out: {listed(others)}" if others else ""))
    findings.details["member"] = shorten(tables[0].name)
    return tables[0]


def _ending(found: list[Member], endings: tuple[str, ...]) -> list[Member]:
    return [m for m in found if m.name.lower().removesuffix(".gz").endswith(endings)]
