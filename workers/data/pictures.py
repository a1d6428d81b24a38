"""Pictures in class folders, and the idx files of MNIST and its kin, as one Parquet table."""

import hashlib
import io
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from app.core.errors import InvalidInput
from app.serving.images import open_image
from app.settings import LimitSettings
from app.specs.data import ROW_ID
from workers.data.findings import Findings, Tick, shorten, unreadable
from workers.data.profile import profile_column
from workers.data.unpack import Budget, Member, gunzip

EXTENSIONS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
IDX = re.compile(r"(?P<prefix>.*?)[-._]?(?P<role>images|labels)[-._]idx[13][-._]ubyte(?P<gz>\.gz)?$", re.IGNORECASE)
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}
_BATCH_ROWS, _BATCH_BYTES = 1000, 64 << 20
_TICK_ROWS = 200


@dataclass(frozen=True, slots=True)
class Picture:
    """One row: `image` as encoded in the upload (idx: PNG), its class, and its upright size in pixels."""

    image: bytes
    label: str
    path: str
    width: int
    height: int
    split: str | None = None


@dataclass(slots=True)
class PictureWriter:
    """Writes pictures in small row groups and notices those that come twice."""

    path: Path
    with_split: bool
    rows: int = 0
    repeated: int = 0
    contradicting: int = 0
    _writer: pq.ParquetWriter | None = None
    _batch: list[Picture] = field(default_factory=list)
    _bytes: int = 0
    _seen: dict[bytes, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def write(self, picture: Picture) -> None:
        """Append one row."""
        first = self._seen.setdefault(hashlib.blake2b(picture.image, digest_size=16).digest(), picture.label)
        if self.rows + len(self._batch) + 1 > len(self._seen) + self.repeated:
            self.repeated += 1
            self.contradicting += first != picture.label
        self._batch.append(picture)
        self._bytes += len(picture.image)
        if len(self._batch) >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        names = ["image", "label", "path", "width", "height", *(["split"] if self.with_split else [])]
        columns = {ROW_ID: pa.array(range(self.rows, self.rows + len(self._batch)), pa.int64())}
        types = {"image": pa.binary(), "width": pa.int64(), "height": pa.int64()}
        columns |= {n: pa.array([getattr(p, n) for p in self._batch], types.get(n, pa.string())) for n in names}
        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self.path, table.schema, compression=dict.fromkeys(columns, "zstd") | {"image": "none"}
            )
        self._writer.write_table(table)
        self.rows += len(self._batch)
        self._batch, self._bytes = [], 0


def write_folders(
    found: list[Member], target: Path, findings: Findings, limits: LimitSettings, tick: Tick
) -> PictureWriter:
    """Verify every picture by decoding it and write the good ones; the label is the innermost folder.

    A `split` column is added if each path names one (train/ants/1.jpg). InvalidData if no picture is left.
    """
    labelled = [m.name for m in found if m.name.lower().endswith(EXTENSIONS) and label_of(m.name)]
    with_split = all(split_of(name) for name in labelled)
    with PictureWriter(target, with_split) as writer:
        for i, member in enumerate(found):
            try:
                writer.write(_read(member, limits, with_split=with_split))
            except InvalidInput as error:
                findings.reject(error.detail, path=member.name)
            if i % _TICK_ROWS == 0:
                tick(i / len(found), f"{i:,} of {len(found):,} files read")
    if not writer.rows:
        raise unreadable(f"the archive holds no usable picture; first: {findings.first_rejection()}")
    return writer


def _read(member: Member, limits: LimitSettings, *, with_split: bool) -> Picture:
    label = label_of(member.name)
    if not label:
        raise unreadable("not in a class folder; put pictures in folders named after their classes")
    if not member.name.lower().endswith(EXTENSIONS):
        raise unreadable("not a picture by its name")
    if member.size_bytes > max_bytes(limits):
        raise unreadable(f"larger than {max_bytes(limits) >> 20:,} MiB, which no picture under the pixel limit needs")
    raw = member.read()
    size = open_image(raw, limits.image_megapixels).size
    return Picture(raw, label, member.name, *size, split=split_of(member.name) if with_split else None)


def max_bytes(limits: LimitSettings) -> int:
    """Size of the largest picture within the pixel limit: 4 channels of 16 bits, not compressed, and a header."""
    return int(limits.image_megapixels * 8e6) + (1 << 20)


def label_of(name: str) -> str | None:
    """The innermost folder of a path; None if there is none, or if it only names a part such as train."""
    folders = [part for part in name.split("/")[:-1] if part not in {"", "."}]
    return folders[-1] if folders and folders[-1].lower() not in _SPLITS else None


def split_of(name: str) -> str | None:
    """The part that a folder of the path names: train, validation or test."""
    return next((_SPLITS[part.lower()] for part in name.split("/")[:-1] if part.lower() in _SPLITS), None)


def write_idx(
    found: list[Member], target: Path, scratch: Path, findings: Findings, budget: Budget, tick: Tick
) -> PictureWriter:
    """Pair `*-images-idx3-ubyte` with `*-labels-idx1-ubyte` and write their pictures as PNG.

    A `split` column is added if there are several pairs. InvalidData: a file without its partner, or a header that
    does not fit the file.
    """
    pairs = _pairs(found)
    with ExitStack() as stack:
        writer = stack.enter_context(PictureWriter(target, len(pairs) > 1))
        for number, (prefix, roles) in enumerate(pairs.items()):
            images = _load_idx(roles["images"], 3, scratch / f"images-{number}", budget)  # uint8 [N, H, W]
            labels = _load_idx(roles["labels"], 1, scratch / f"labels-{number}", budget)  # uint8 [N]
            if len(images) != len(labels):
                raise unreadable(
                    f"'{roles['images'].name}' holds {len(images):,} pictures, but its labels are {len(labels):,}"
                )
            if images.shape[1] * images.shape[2] > budget.limits.image_megapixels * 1e6:
                raise unreadable(
                    f"'{roles['images'].name}' holds pictures of over {budget.limits.image_megapixels:g} megapixels "
                    "(AIMASS_LIMIT_IMAGE_MEGAPIXELS), so scale them down"
                )
            words = re.split("[-._]", prefix.lower())  # emnist-letters-train, say
            split = next((_SPLITS[word] for word in reversed(words) if word in _SPLITS), prefix or "train")
            for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
                path = f"{roles['images'].name}#{i}"
                writer.write(Picture(_png(pixels), str(label), path, images.shape[2], images.shape[1], split))
                if i % (5 * _TICK_ROWS) == 0:
                    tick((number + i / len(images)) / len(pairs), f"{i:,} pictures of '{shorten(prefix, 40)}' read")
    for member in found:
        if not IDX.match(member.name.rsplit("/", 1)[-1]):
            findings.reject("not an idx file", path=member.name)
    return writer


def _pairs(found: list[Member]) -> dict[str, dict[str, Member]]:
    """Prefix → {images, labels}."""
    pairs: dict[str, dict[str, Member]] = {}
    for member in found:
        if match := IDX.match(member.name.rsplit("/", 1)[-1]):
            roles = pairs.setdefault(match["prefix"], {})
            if roles.setdefault(match["role"].lower(), member) is not member:
                raise unreadable(f"'{member.name}' is in the archive twice, packed and unpacked; leave one out")
    for roles in pairs.values():
        if len(roles) != 2:  # noqa: PLR2004 - a pair
            (role, member), other = next(iter(roles.items())), "labels-idx1" if "images" in roles else "images-idx3"
            raise unreadable(f"'{member.name}' has {role} only; put its {other} file into the same archive")
    return pairs


def _load_idx(member: Member, rank: int, target: Path, budget: Budget) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The array of an idx file, mapped from `target`. InvalidData if the header claims another size than there is."""
    if member.name.lower().endswith(".gz"):
        packed = target.with_suffix(".gz")
        member.copy(packed)
        with packed.open("rb") as source:
            gunzip(source, target, budget)
        packed.unlink()
    else:
        member.copy(target)
    with target.open("rb") as file:
        head = file.read(4 + 4 * rank).ljust(4 + 4 * rank, b"\0")
    shape = tuple(int(n) for n in np.frombuffer(head[4:], ">u4"))
    count, size = int(np.prod(shape, dtype=object)), target.stat().st_size - 4 - 4 * rank
    if head[:4] != bytes([0, 0, 8, rank]) or count != size or not count:
        raise unreadable(
            f"'{member.name}': the idx header claims {shape} bytes, the file holds {max(size, 0):,}; upload it again"
        )
    return np.memmap(target, np.uint8, "r", 4 + 4 * rank, shape)


def _png(pixels: "np.ndarray[Any, np.dtype[np.uint8]]") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def profile_pictures(data: Path, writer: PictureWriter, findings: Findings) -> list[dict[str, Any]]:
    """One entry a column, as `profile_table` makes them; `label` lists every class with its count."""
    lazy = pl.scan_parquet(data)
    entries: list[dict[str, Any]] = [
        {"name": "image", "type": "image", "missing": 0, "unique": writer.rows - writer.repeated}
    ]
    names = ["label", *(["split"] if writer.with_split else []), "width", "height"]
    entries += [profile_column(lazy.select(name), name, writer.rows) for name in names]
    entries.append({"name": "path", "type": "text", "missing": 0, "unique": writer.rows})
    counts = lazy.group_by("label").len().sort("label").collect()
    entries[1] |= {"type": "category", "top": [{"value": v, "count": c} for v, c in counts.iter_rows()]}
    if len(counts) == 1:
        findings.warn(
            f"all pictures are of one class, '{shorten(counts['label'][0], 60)}': there is nothing to tell apart"
        )
    if writer.repeated:
        findings.warn(
            f"{writer.repeated:,} pictures repeat an earlier one"
            + (f", {writer.contradicting:,} of them under another label" if writer.contradicting else "")
        )
    return entries
