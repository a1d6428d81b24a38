"""Pictures of a data set, decoded once into one array on disk."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from app.core.errors import InvalidData, InvalidTensor
from app.core.signature import ImageFormat
from app.serving.images import decode_image, open_image
from workers.context import JobContext

MAX_SIDE = 96  # pixels, where the parameters leave the size open
_PROBED = 200  # pictures looked at to tell grey from colour
_BATCH = 256


def choose_format(path: Path, table: pl.DataFrame, size: int | None) -> ImageFormat:
    """Grey or colour, and the size: `size` squared, else that of the pictures, at most MAX_SIDE a side.

    Pictures of several shapes become squares as long as their median shorter side.
    """
    modes = set()
    for count, (raw, name) in enumerate(_raw_images(path)):
        if count >= _PROBED:
            break
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


def decode_all(path: Path, fmt: ImageFormat, rows: int, job: JobContext) -> npt.NDArray[np.uint8]:
    """Every picture of the data set, uint8 [N, C, H, W], in a file that vanishes with the array."""
    shape = (rows, 1 if fmt.mode == "L" else 3, fmt.height, fmt.width)
    with TemporaryFile(dir=job.folder) as file:
        pixels = np.memmap(file, np.uint8, "w+", shape=shape)
    for index, (raw, name) in enumerate(_raw_images(path)):
        try:
            pixels[index] = decode_image(raw, fmt, max_megapixels=float("inf"))  # ingest has checked the size
        except InvalidTensor as error:
            raise InvalidData.at("dataset", msg=f"{name}: {error.detail}") from None
        if index % 5000 == 0:
            job.progress(0.05 * index / rows, "decoding pictures")
    return pixels


def _raw_images(path: Path) -> Iterator[tuple[bytes, str]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH, columns=["image", "path"]):
            yield from zip(batch["image"].to_pylist(), batch["path"].to_pylist(), strict=True)
