"""Pictures of a data set, decoded once into one array on disk."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from app.core.errors import InvalidData, InvalidSpec, InvalidTensor, Unavailable
from app.core.signature import ImageFormat
from app.serving.images import decode_image, open_image
from app.specs.jobs import Resources
from workers.context import JobContext
from workers.learning import Array

MAX_SIDE = 96  # pixels, where the parameters leave the size open
_PROBED = 200  # pictures looked at to tell grey from colour
_BATCH = 256
# Of all pictures, while they are learnt from or judge: as they are decoded, as the parts of the data, and as those are
# taken again. Folds have copies of their own.
COPIES, COPIES_WITH_FOLDS = 3, 5
_SMALL = 8  # pixels a side: smaller pictures are none
_BESIDE_MB = 1000  # libraries, and the work of a small network


def choose_format(path: Path, table: pl.DataFrame, size: int | None) -> ImageFormat:
    """Grey or colour, and the size: `size` squared, else that of the pictures, at most MAX_SIDE a side.

    Pictures of several shapes become squares as long as their median shorter side.
    """
    modes = set()
    for raw, name in _spread_images(path):
        try:
            modes.add(open_image(raw, float("inf")).mode)  # ingest has checked the size
        except InvalidTensor as error:
            raise InvalidData.at("dataset", msg=f"{name}: {error.detail}") from None
    mode: Literal["L", "RGB"] = "L" if modes == {"L"} else "RGB"
    if size is not None:
        return ImageFormat(mode, size, size)
    shapes = table.select("height", "width").unique()
    if len(shapes) == 1:
        height, width = shapes.row(0)
        scale = min(1.0, MAX_SIDE / max(height, width))
        return ImageFormat(mode, max(1, round(height * scale)), max(1, round(width * scale)))
    median = np.median(np.minimum(table["height"].to_numpy(), table["width"].to_numpy()))
    side = min(MAX_SIDE, max(8, int(median)))
    return ImageFormat(mode, side, side)


def decode_all(
    path: Path, fmt: ImageFormat, rows: int, job: JobContext, copies: int = COPIES, *, resizable: bool = False
) -> npt.NDArray[np.uint8]:
    """Every picture of the data set, uint8 [N, C, H, W], in a file that vanishes with the array.

    InvalidSpec, before any is decoded, if so many copies of them do not fit the job's memory; `resizable`: a smaller
    `params.image_size` is a remedy.
    """
    shape = (rows, 1 if fmt.mode == "L" else 3, fmt.height, fmt.width)
    _check_memory(shape, job, copies, resizable=resizable)
    pixels = array_on_disk(job.folder, np.uint8, shape)
    for index, (raw, name) in enumerate(_raw_images(path)):
        try:
            pixels[index] = decode_image(raw, fmt, max_megapixels=float("inf"))  # ingest has checked the size
        except InvalidTensor as error:
            raise InvalidData.at("dataset", msg=f"{name}: {error.detail}") from None
        if index % 5000 == 0:
            job.progress(0.05 * index / rows, "decoding pictures")
    return pixels


def _check_memory(shape: tuple[int, ...], job: JobContext, copies: int, *, resizable: bool) -> None:
    """InvalidSpec if pictures [N, C, H, W] do not fit; what is mapped counts as memory of the job, too."""
    memory_mb = Resources.model_validate(job.spec.get("resources", {})).memory_mb
    room = max(memory_mb - _BESIDE_MB, memory_mb / 2)
    rows, channels, height, width = shape
    pixel_mb = rows * channels * copies / (1 << 20)
    if height * width * pixel_mb <= room:
        return
    msg = f"{rows:,} pictures of {height} x {width} pixels take about {height * width * pixel_mb + _BESIDE_MB:,.0f} MiB"
    remedy = "raise it, or use fewer pictures"
    if (side := math.isqrt(int(room / pixel_mb))) >= _SMALL and resizable:
        remedy = f"raise it, use fewer pictures, or set params.image_size to {side} at most"
    raise InvalidSpec.at("resources", "memory_mb", msg=f"{msg}; {remedy}")


def array_on_disk(folder: Path, dtype: Any, shape: tuple[int, ...]) -> Array:  # noqa: ANN401 - as numpy takes it
    """Zeros in a file in the folder, which vanishes with the array. Unavailable if the disk has no room for it.

    Its blocks are there before it is written to: a page that a full disk cannot take would kill the process.
    """
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    with TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            msg = (
                f"{size / 1e6:,.0f} MB of decoded pictures find no room in the worker's folder for jobs "
                f"({error.strerror}); free or add disk space there, or use fewer or smaller pictures"
            )
            raise Unavailable(msg) from None
        return np.memmap(file, dtype, "r+", shape=shape)


def _spread_images(path: Path) -> Iterator[tuple[bytes, str]]:
    """Pictures to look at, spread evenly over the data set, since an archive may be sorted by what they show."""
    with pq.ParquetFile(path) as file:
        chosen = np.unique(np.linspace(0, max(0, file.metadata.num_rows - 1), _PROBED).astype(np.int64))
        start = 0
        for group in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            some = chosen[(chosen >= start) & (chosen < stop)] - start
            if len(some):
                found = file.read_row_group(group, columns=["image", "path"]).take(some)
                yield from zip(found["image"].to_pylist(), found["path"].to_pylist(), strict=True)
            start = stop


def _raw_images(path: Path) -> Iterator[tuple[bytes, str]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH, columns=["image", "path"]):
            yield from zip(batch["image"].to_pylist(), batch["path"].to_pylist(), strict=True)
