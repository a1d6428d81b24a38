"""Decoded pictures on disk: their room, and whether they are grey."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from app.core.errors import InvalidSpec, Unavailable
from app.core.signature import ImageFormat
from workers.data.images import COPIES, COPIES_WITH_FOLDS, array_on_disk, choose_format, decode_all
from workers.jobs import train

MakeJob = Callable[..., Any]


def test_the_room_is_there_before_the_array_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    allocate = os.posix_fallocate

    def noted(file: int, start: int, size: int) -> None:
        allocate(file, start, size)
        asked.append((start, size, os.fstat(file).st_blocks * 512 >= size))

    monkeypatch.setattr(os, "posix_fallocate", noted)
    pixels = array_on_disk(tmp_path, np.float32, (100, 3, 8, 8))
    assert asked == [(0, 76_800, True)]
    assert (pixels.shape, pixels.dtype, pixels.any()) == ((100, 3, 8, 8), np.float32, False)
    pixels[:] = 7
    assert (pixels == 7).all()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_the_remedy(make_job: MakeJob, digits: pl.DataFrame, monkeypatch: pytest.MonkeyPatch):
    job = make_job(digits, data="image")

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Unavailable, match=r"No space left on device\); free or add disk space"):
        decode_all(job.input / "dataset" / "data.parquet", ImageFormat("L", 8, 8), len(digits), job)


@pytest.mark.parametrize(("copies", "side"), [(COPIES, 157), (COPIES_WITH_FOLDS, 122)])
def test_pictures_that_cannot_fit_are_refused_before_they_are_decoded(
    make_job: MakeJob, digits: pl.DataFrame, copies: int, side: int
):
    """What may be asked for instead is taken."""
    job = make_job(digits, data="image", resources={"memory_mb": 256})
    path = job.input / "dataset" / "data.parquet"
    with pytest.raises(InvalidSpec) as refused:
        decode_all(path, ImageFormat("L", 512, 512), len(digits), job, copies, resizable=True)
    assert refused.value.errors[0].loc == ("resources", "memory_mb")
    assert refused.value.errors[0].msg.endswith(f"use fewer pictures, or set params.image_size to {side} at most")
    assert not [event for event in job.seen if event["event"] == "progress"]
    assert decode_all(path, ImageFormat("L", side, side), len(digits), job, copies).shape == (1797, 1, side, side)


@pytest.mark.parametrize(("family", "remedy"), [("cnn", "or set params.image_size to 157"), ("auto_image", "raise it")])
def test_a_training_names_the_remedies_that_its_family_has(
    make_job: MakeJob, digits: pl.DataFrame, family: str, remedy: str
):
    """Of pictures that are as large as their profile says, which nobody has decoded."""
    large = digits.with_columns(width=pl.lit(512), height=pl.lit(512))
    spec = {"params": {"image_size": 512}} if family == "cnn" else {}
    job = make_job(
        large if family == "cnn" else pl.concat([large] * 20), data="image", target="label", family=family,
        resources={"memory_mb": 256}, **spec,
    )  # fmt: skip
    with pytest.raises(InvalidSpec) as refused:
        train.run(job)
    assert remedy in refused.value.errors[0].msg
    assert ("image_size" in refused.value.errors[0].msg) == (family == "cnn")


@pytest.mark.parametrize("groups", [1000, 37])
def test_colour_in_a_late_part_of_the_archive_is_seen(tmp_path: Path, digits: pl.DataFrame, groups: int):
    """Grey pictures come first, as those of the first classes of an archive may."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 90, 200)).save(buffer, "PNG")
    grey = digits.head(1000)
    path = tmp_path / "data.parquet"
    for colours, mode in ((60, "RGB"), (0, "L")):
        coloured = digits.head(colours).with_columns(image=pl.lit(buffer.getvalue()))
        table = pl.concat([grey, coloured])
        table.write_parquet(path, row_group_size=groups)
        assert choose_format(path, table, None) == ImageFormat(mode, 8, 8)
