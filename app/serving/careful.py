"""The slow reading of a prediction body, value by value, for exact errors: for what the fast decoders refuse.

It ends at the last error that is told: bodies that are all wrong cost no more than that, and hold no memory that their
bytes do not pay for.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from app.core.errors import FieldError, InvalidTensor, Malformed
from app.core.signature import Column, Signature
from app.serving.row_limit import RowLimit
from app.serving.tensors import DTYPES, FLOAT32_MAX
from app.serving.types import Array, Tensors

TEXTS = frozenset({"category", "text"})  # column types of tensors of text; missing is the empty text
_MAX_ERRORS = 100
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 40  # characters of a bad value that a message repeats


class _Refusals:
    """Collects field errors; the last that is told ends the reading, since what comes after it changes nothing."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []

    def add(self, *loc: str | int, msg: str, kind: str) -> None:
        """InvalidTensor once there are as many as are told."""
        self.errors.append(FieldError(loc, msg, kind))
        if len(self.errors) == _MAX_ERRORS:
            raise self._error("at least ")

    def check(self) -> None:
        """InvalidTensor if anything was added."""
        if self.errors:
            raise self._error()

    def _error(self, bound: str = "") -> InvalidTensor:
        first = self.errors[0]
        more = f" (and {bound}{len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
        return InvalidTensor(f"{'.'.join(map(str, first.loc))}: {first.msg}{more}", errors=self.errors)


def read_instances(body: bytes) -> list[Any]:
    """The list under `instances`. NaN and Infinity are read as floats, so that they can be named as the error."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    refusals = _Refusals()
    if not isinstance(document, dict):
        raise Malformed('the body must be a JSON object {"instances": […]}')
    for key in document:
        if key != "instances":
            refusals.add(key, msg="unknown field; the only one is `instances`", kind="unknown_field")
    instances = document.get("instances")
    if "instances" not in document:
        refusals.add("instances", msg="missing: send the rows to predict as a list", kind="missing")
    elif not isinstance(instances, list) or not instances:
        refusals.add("instances", msg="must be a list of at least one instance", kind="type")
    refusals.check()
    return instances or []


def from_base64(text: str) -> bytes:
    """Bytes of a base64 text, with or without a `data:…;base64,` prefix; ValueError if it is not one."""
    _, _, payload = text.partition(";base64,") if text.startswith("data:") else ("", "", text)
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


class CarefulTable:
    """Rows of named values."""

    def __init__(self, signature: Signature, limit: RowLimit) -> None:
        self._limit = limit
        self._columns = {column.name: column for column in signature.columns}
        self._known = ", ".join(list(self._columns)[:10])
        self._tensors: list[tuple[list[str], Any]] = []
        for tensor in signature.inputs:
            own = sorted((c for c in signature.columns if c.tensor == tensor.name), key=lambda column: column.index)
            self._tensors.append(([column.name for column in own], DTYPES[tensor.datatype]))

    def __call__(self, body: bytes, error: Exception) -> tuple[Tensors, int]:
        """Read `body`, which the fast decoder refused with `error`."""
        instances, refusals = read_instances(body), _Refusals()
        self._limit.check(len(instances))
        rows = [self._row(row, instance, refusals) for row, instance in enumerate(instances)]
        refusals.check()
        if "utf-8" in str(error).lower():
            raise Malformed("the body is not UTF-8")
        arrays = [np.array([[row[name] for name in names] for row in rows], dtype) for names, dtype in self._tensors]
        return tuple(arrays), len(rows)

    def _row(self, row: int, instance: Any, refusals: _Refusals) -> dict[str, float | str]:  # noqa: ANN401 - JSON
        """What goes into the tensors, by column; only what fits, if there is something to refuse."""
        values: dict[str, float | str] = {}
        if not isinstance(instance, dict):
            refusals.add("instances", row, msg="must be an object {column: value, …}", kind="type")
            return values
        for name in instance:
            if name not in self._columns:
                known = f"unknown column; the model has {self._known}"
                refusals.add("instances", row, name, msg=known, kind="unknown_column")
        for name, column in self._columns.items():
            if name not in instance:
                remedy = "send null if it is not known" if column.nullable else f"the model needs this {column.type}"
                refusals.add("instances", row, name, msg=f"missing column: {remedy}", kind="missing")
                continue
            value, problem = _value(instance[name], column)
            if problem:
                refusals.add("instances", row, name, msg=problem[0], kind=problem[1])
            else:
                values[name] = value
        return values


def _value(value: Any, column: Column) -> tuple[float | str, tuple[str, str] | None]:  # noqa: ANN401, PLR0911 - JSON; one return a rule
    """(what goes into the tensor, (message, type) of the problem if there is one)."""
    if value is None:
        if column.nullable:
            return ("" if column.type in TEXTS else math.nan), None
        return 0.0, ("null is not accepted: the column had no missing values in training", "null")
    if column.type in TEXTS:
        return _text(value)
    if column.type == "boolean":
        if not isinstance(value, bool):
            return 0.0, (f"must be true or false, got {_shown(value)}", "type")
        return float(value), None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0, (f"must be {'an' if column.type == 'integer' else 'a'} {column.type}, got {_shown(value)}", "type")
    if isinstance(value, float) and not math.isfinite(value):
        remedy = "; send null for a missing value" if column.nullable else ""
        return 0.0, (f"must be a finite number, got {value}{remedy}", "not_finite")
    if abs(value) > FLOAT32_MAX:
        limit = f"must be within ±{FLOAT32_MAX:.4g} (32-bit floating point)"
        return 0.0, (f"{limit}, got {_shown(value)}", "range")
    if column.type == "integer" and value != int(value):
        return 0.0, (f"must be an integer, got {value}", "type")
    return float(value), None


def _text(value: Any) -> tuple[str, tuple[str, str] | None]:  # noqa: ANN401 - any JSON value
    if not isinstance(value, str):
        return "", (f"must be a text, got {_shown(value)}", "type")
    if _SURROGATE.search(value):
        return "", (f"must be Unicode text, got half a character: {_shown(value)}", "encoding")
    return value.strip(), None


def _shown(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """The beginning of a bad value, as a message repeats it."""
    return repr(value[:_SHOWN] if isinstance(value, str) else value)[:_SHOWN]


def beside_all(before: Callable[[int], None] | None, rows: int, shape: tuple[int, ...]) -> Callable[[int], None] | None:
    """`before`, told with each picture what all rows take once they are decoded, one by one and then in one array."""
    return before and (lambda size: before(size + 2 * rows * math.prod(shape)))


class CarefulImages:
    """Pictures as base64 text or nested lists."""

    def __init__(self, signature: Signature, limit: RowLimit, max_megapixels: float) -> None:
        self._limit = limit
        self._max_megapixels = max_megapixels
        self._format = signature.image
        self._column = signature.columns[0].name
        self._shape = signature.inputs[0].shape[1:]

    def __call__(
        self, body: bytes, error: Exception, before: Callable[[int], None] | None = None
    ) -> tuple[Tensors, int]:
        """Read `body`, which the fast decoder refused with `error`; `before` as of `app.serving.images`."""
        instances, refusals = read_instances(body), _Refusals()
        self._limit.check(len(instances))
        before = beside_all(before, len(instances), self._shape)
        images = []
        for row, instance in enumerate(instances):
            loc: tuple[str | int, ...] = ("instances", row)
            picture = instance
            if isinstance(instance, dict):
                loc = (*loc, self._column)
                for name in instance:
                    if name != self._column:
                        known = f"unknown column; the model has {self._column}"
                        refusals.add("instances", row, name, msg=known, kind="unknown_column")
                if self._column not in instance:
                    refusals.add(*loc, msg="missing column: the model needs this image", kind="missing")
                    continue
                picture = instance[self._column]
            try:
                images.append(self._picture(picture, before))
            except InvalidTensor as problem:
                refusals.add(*loc, msg=problem.detail, kind="image")
            except ValueError as problem:
                refusals.add(*loc, msg=str(problem), kind="image")
        refusals.check()
        if not images:  # unreachable unless the two readers disagree; then the fast one's word stands
            raise InvalidTensor(str(error))
        return (np.stack(images),), len(images)

    def _picture(self, value: Any, before: Callable[[int], None] | None) -> Array:  # noqa: ANN401 - any JSON value
        if isinstance(value, str):
            try:
                raw = from_base64(value)
            except ValueError as problem:
                raise ValueError(f"not base64: {problem}") from None
            if self._format is None:
                raise ValueError("this model takes no encoded pictures")
            from app.serving.images import decode_image  # noqa: PLC0415 - Pillow takes 2 MiB, for models of pictures alone

            return decode_image(raw, self._format, max_megapixels=self._max_megapixels, before=before)
        channels, height, width = self._shape
        wanted = f"must be base64 text or nested lists [{channels}][{height}][{width}] of integers 0-255"
        if not isinstance(value, list):
            raise ValueError(f"{wanted}, got {_shown(value)}")  # noqa: TRY004 - a ValueError is what the caller collects
        try:
            pixels = np.array(value)
        except ValueError:
            raise ValueError(f"{wanted}; the lists differ in length") from None
        if channels == 1 and pixels.shape == (height, width):
            pixels = pixels[np.newaxis]
        if pixels.shape != tuple(self._shape):
            raise ValueError(f"{wanted}, got {list(pixels.shape)}")
        if pixels.dtype.kind != "i" or pixels.min() < 0 or pixels.max() > 255:  # noqa: PLR2004 - a byte
            raise ValueError(f"{wanted}, got other values")
        return pixels.astype(np.uint8)
