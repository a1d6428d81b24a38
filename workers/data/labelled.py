"""A data set with labels as a model reads it: by its signature, or by a mapping where it was imported."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from app.core.errors import InvalidData, InvalidSpec
from app.core.signature import ImageFormat, Signature, Task, Tensor
from app.serving.tensors import DTYPES
from app.specs.data import DATA_FILE, PROFILE_FILE, ROW_ID
from app.specs.jobs import Resources
from app.specs.mapping import Mapping, TensorMapping, check_judging, picture_tensor, row_shape
from workers.context import JobContext
from workers.data.findings import listed
from workers.data.images import array_on_disk, decode_all
from workers.data.large import is_large, read_rows, spaced_rows
from workers.data.prepare import IMAGE_COLUMN, read_image_table
from workers.data.slices import slice_labels
from workers.data.tables import present, table_inputs
from workers.data.values import as_text, exact_numbers, read_target
from workers.learning import Array, Inputs

_CHUNK = 1024
_UNKNOWN = 20  # labels that are told of


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows with a label that the model knows. `given` is each row's part where the data set brings its own division."""

    task: Task
    inputs: Inputs
    y: Array
    row_ids: Array
    classes: tuple[str, ...]
    given: list[str | None] | None
    left_out: dict[str, int]
    unknown: dict[str, int]  # labels that the model does not know, the most frequent ones, with their rows
    slices: dict[str, Array] = field(default_factory=dict)  # the slice of each row, text [N], by column


def read_labelled(
    job: JobContext, signature: Signature, mapping: Mapping | None, slices: Sequence[str] = ()
) -> Labelled:
    """Every row of `input/dataset` that can judge, with its slice by each column of `slices`.

    Raises:
        InvalidSpec: the data set lacks a column, or does not suit the model.
        InvalidData: no row is left, or a value does not fit its tensor.
    """
    folder = job.input / "dataset"
    path = folder / DATA_FILE
    profile = json.loads((folder / PROFILE_FILE).read_text(encoding="utf-8"))
    kind = profile["kind"]
    check_judging(mapping, signature, kind, [name for name in pl.read_parquet_schema(path) if name != ROW_ID])
    task, name, classes = signature.task, signature.target, signature.classes
    if mapping is not None:
        task, name, classes = mapping.task, mapping.target, tuple(mapping.classes or ())
    if task == "inference":  # told apart by the check before
        raise InvalidData.at("mapping", msg="is required")
    table = read_image_table(path) if kind == "image" else _read_table(job, path, profile)
    table = table.with_row_index("__position")
    kept = present(table, [name])
    left_out = {"without_label": len(table) - len(kept)}
    if not len(kept):
        raise InvalidData.at("dataset", msg=f"every value of '{name}' is missing; there is no label to judge by")
    try:
        target = read_target(kept[name], task, classes, signature.separator, to_learn=False)
    except InvalidData as error:
        raise InvalidData.at("mapping" if mapping else "dataset", "target", msg=error.errors[0].msg) from None
    if task == "classification" and not classes and target.classes != tuple(map(str, range(len(target.classes)))):
        msg = f"is required: say which labels the output's columns mean, in which order: {listed(list(target.classes))}"
        raise InvalidData.at("mapping", "classes", msg=msg)
    known: Array = np.ones(len(kept), bool)
    if task != "regression":
        known = np.asarray((target.y.reshape(len(kept), -1) >= 0).all(axis=1))
    unknown = _count_unknown(job, kept[name], known, classes)
    left_out["of_unknown_class"] = int((~known).sum())
    kept, y = kept.filter(pl.Series(known)), target.y[known]
    rows = kept["__position"].to_numpy()
    if kind == "image":
        inputs = _pictures(job, path, len(table), rows, signature, mapping)
    elif mapping is None:
        inputs = table_inputs(kept, signature)
    else:
        inputs = {tensor.name: _columns(kept, tensor, mapping.inputs[tensor.name]) for tensor in signature.inputs}
    given = kept["split"].cast(pl.String).to_list() if kind == "image" and "split" in kept.columns else None
    return Labelled(
        task, inputs, y, kept[ROW_ID].to_numpy(), target.classes, given, left_out, unknown, _slices(kept, slices)
    )


def _slices(table: pl.DataFrame, columns: Sequence[str]) -> dict[str, Array]:
    """By column; InvalidSpec if one is not there, which is not known before a data set is ingested."""
    for at, name in enumerate(columns):
        if name not in table.columns or name == ROW_ID:
            raise InvalidSpec.at("slices", at, msg=f"there is no column '{name}'", type="unknown_column")
    return {name: slice_labels(table[name]) for name in columns}


def _read_table(job: JobContext, path: Path, profile: dict[str, Any]) -> pl.DataFrame:
    """The table; of one that would take more than half of the job's memory, evenly spaced rows."""
    memory_mb = Resources.model_validate(job.spec.get("resources", {})).memory_mb
    if not is_large(profile, memory_mb):
        return pl.read_parquet(path)
    some = spaced_rows(profile, memory_mb)
    job.log(f"judged by {len(some):,} of {profile['rows']:,} rows, evenly spaced; raise resources.memory_mb for more")
    return read_rows(path, some)


def _count_unknown(job: JobContext, labels: pl.Series, known: Array, classes: Sequence[str]) -> dict[str, int]:
    """The labels that are none of the model's classes; said aloud, since a mistake in `classes` looks like that."""
    if known.all():
        return {}
    texts = as_text(labels).filter(pl.Series(~known))
    counts = Counter(texts.to_list()).most_common(_UNKNOWN)
    shown = listed([label for label, _ in counts], _UNKNOWN)
    if not known.any():
        msg = f"no label in '{labels.name}' is one of the model's classes {listed(list(classes))}; it holds {shown}"
        raise InvalidData.at("mapping", "classes", msg=msg)
    job.log(f"{len(texts)} rows are left out, whose labels are none of the model's classes: {shown}", level="warning")
    return dict(counts)


def _columns(frame: pl.DataFrame, tensor: Tensor, given: TensorMapping) -> Array:
    """[N, …] of the tensor's type, row by row from the columns."""
    names = given.columns or []
    if tensor.datatype == "BYTES":
        texts = [np.asarray(as_text(frame[name]).fill_null("").to_list(), object) for name in names]
        stacked = np.stack(texts, axis=1)
    else:
        stacked = np.stack([_numbers(frame[name], tensor) for name in names], axis=1)
    return stacked.reshape(len(frame), *row_shape(tensor, len(names)))


def _numbers(column: pl.Series, tensor: Tensor) -> Array:
    """A column as the tensor's type. InvalidData for values that it cannot hold."""
    dtype, where = DTYPES[tensor.datatype], ("mapping", "inputs", tensor.name, "columns")
    values = exact_numbers(column)
    lost = values.is_null() & column.is_not_null()
    if lost.any():
        shown = str(column.filter(lost)[0])[:100]
        raise InvalidData.at(*where, msg=f"'{column.name}' holds '{shown}', which is no number")
    if dtype.kind not in "iub":  # floats of some kind: NaN = missing
        wide = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        with np.errstate(over="ignore"):
            cast = wide.astype(dtype)
        bad = np.isinf(cast.astype(np.float64)) & np.isfinite(wide)
    else:
        if values.null_count():
            missing = f"'{column.name}' has {values.null_count()} missing values, which {tensor.datatype} cannot hold"
            raise InvalidData.at(*where, msg=f"{missing}; fill them, or drop those rows")
        wide = values.to_numpy()
        with np.errstate(invalid="ignore"):  # compared below
            cast = wide.astype(dtype)
        bad = (cast.astype(wide.dtype) != wide) | ((wide < 0) & (dtype.kind == "u"))
    if bad.any():
        msg = f"'{column.name}' holds {wide[bad][0]}, which {tensor.datatype} cannot hold"
        raise InvalidData.at(*where, msg=msg)
    return cast


def _pictures(
    job: JobContext, path: Path, count: int, rows: Array, signature: Signature, mapping: Mapping | None
) -> dict[str, Array]:
    """The chosen rows' pictures, in a file that vanishes with the array where they had to be changed."""
    if mapping is None and signature.image is not None:
        pixels: Array = decode_all(path, signature.image, count, job)
        return {IMAGE_COLUMN: pixels if len(rows) == count else pixels[rows]}
    tensor = picture_tensor(signature)
    if tensor is None or mapping is None:  # told apart by the check before
        raise InvalidData.at("dataset", msg="the model takes no pictures")
    channels, height, width = tensor.shape[1:]
    pixels = decode_all(path, ImageFormat("L" if channels == 1 else "RGB", height, width), count, job)
    given = mapping.inputs.get(tensor.name, TensorMapping())
    mean = np.array(given.mean or 0, np.float32).reshape(-1, 1, 1)
    std = np.array(given.std or 1, np.float32).reshape(-1, 1, 1)
    dtype: Any = DTYPES[tensor.datatype]
    scaled = array_on_disk(job.folder, dtype, (len(rows), channels, height, width))
    for start in range(0, len(rows), _CHUNK):
        some: Array = pixels[rows[start : start + _CHUNK]]
        if tensor.datatype != "UINT8":
            some = (some.astype(np.float32) / 255 - mean) / std
        scaled[start : start + _CHUNK] = some.astype(dtype)
    return {tensor.name: scaled}
