"""The slow reading of a prediction body, value by value, for exact errors: for what the fast decoders refuse."""

import base64
import binascii
import json
import math
import re
from typing import Any

import numpy as np

from app.core.errors import FieldError, InvalidTensor, Malformed
from app.core.signature import Column, Signature
from app.serving.images import decode_image
from app.serving.tensors import DTYPES, FLOAT32_MAX
from app.serving.types import Array, Tensors

TEXTS = frozenset({"category", "text"})  # column types of tensors of text; missing is the empty text
_MAX_ERRORS = 100
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 40  # characters of a bad value that a message repeats


class _Refusals:
    """Collects field errors, up to a limit."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []

    def add(self, *loc: str | int, msg: str, kind: str) -> None:
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append(FieldError(loc, msg, kind))

    def check(self) -> None:
        """InvalidTensor if anything was added."""
        if self.errors:
            first = self.errors[0]
            more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
            raise InvalidTensor(f"{'.'.join(map(str, first.loc))}: {first.msg}{more}", errors=self.errors)


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

    def __init__(self, signature: Signature) -> None:
        self._inputs = signature.inputs
        self._columns = {column.name: column for column in signature.columns}

    def __call__(self, body: bytes, error: Exception) -> tuple[Tensors, int]:
        """Read `body`, which the fast decoder refused with `error`."""
        instances, refusals = read_instances(body), _Refusals()
        arrays = {t.name: np.empty((len(instances), t.shape[-1]), DTYPES[t.datatype]) for t in self._inputs}
        for row, instance in enumerate(instances):
            if not isinstance(instance, dict):
                refusals.add("instances", row, msg="must be an object {column: value, …}", kind="type")
                continue
            for name in instance:
                if name not in self._columns:
                    known = ", ".join(list(self._columns)[:10])
                    refusals.add(
                        "instances", row, name, msg=f"unknown column; the model has {known}", kind="unknown_column"
                    )
            for name, column in self._columns.items():
                if name not in instance:
                    remedy = (
                        "send null if it is not known" if column.nullable else f"the model needs this {column.type}"
                    )
                    refusals.add("instances", row, name, msg=f"missing column: {remedy}", kind="missing")
                    continue
                value, problem = _value(instance[name], column)
                if problem:
                    refusals.add("instances", row, name, msg=problem[0], kind=problem[1])
                else:
                    arrays[column.tensor][row, column.index] = value
        refusals.check()
        if "utf-8" in str(error).lower():
            raise Malformed("the body is not UTF-8")
        return tuple(arrays[tensor.name] for tensor in self._inputs), len(instances)


def _value(value: Any, column: Column) -> tuple[float | str, tuple[str, str] | None]:  # noqa: ANN401, PLR0911 - JSON; one return a rule
    """(what goes into the tensor, (message, type) of the problem if there is one)."""
    shown = repr(value)[:_SHOWN]
    if value is None:
        if column.nullable:
            return ("" if column.type in TEXTS else math.nan), None
        return 0.0, ("null is not accepted: the column had no missing values in training", "null")
    if column.type in TEXTS:
        return _text(value)
    if column.type == "boolean":
        return (
            (float(value), None) if isinstance(value, bool) else (0.0, (f"must be true or false, got {shown}", "type"))
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0, (f"must be {'an' if column.type == 'integer' else 'a'} {column.type}, got {shown}", "type")
    if isinstance(value, float) and not math.isfinite(value):
        remedy = "; send null for a missing value" if column.nullable else ""
        return 0.0, (f"must be a finite number, got {shown}{remedy}", "not_finite")
    if abs(value) > FLOAT32_MAX:
        return 0.0, (f"must be within ±{FLOAT32_MAX:.4g} (32-bit floating point), got {shown}", "range")
    if column.type == "integer" and value != int(value):
        return 0.0, (f"must be an integer, got {shown}", "type")
    return float(value), None


def _text(value: Any) -> tuple[str, tuple[str, str] | None]:  # noqa: ANN401 - any JSON value
    shown = repr(value)[:_SHOWN]
    if not isinstance(value, str):
        return "", (f"must be a text, got {shown}", "type")
    if _SURROGATE.search(value):
        return "", (f"must be Unicode text, got half a character: {shown}", "encoding")
    return value.strip(), None


class CarefulImages:
    """Pictures as base64 text or nested lists."""

    def __init__(self, signature: Signature) -> None:
        self._format = signature.image
        self._column = signature.columns[0].name
        self._shape = signature.inputs[0].shape[1:]

    def __call__(self, body: bytes, error: Exception) -> tuple[Tensors, int]:
        """Read `body`, which the fast decoder refused with `error`."""
        instances, refusals = read_instances(body), _Refusals()
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
                images.append(self._picture(picture))
            except InvalidTensor as problem:
                refusals.add(*loc, msg=problem.detail, kind="image")
            except ValueError as problem:
                refusals.add(*loc, msg=str(problem), kind="image")
        refusals.check()
        if not images:  # unreachable unless the two readers disagree; then the fast one's word stands
            raise InvalidTensor(str(error))
        return (np.stack(images),), len(images)

    def _picture(self, value: Any) -> Array:  # noqa: ANN401 - any JSON value
        if isinstance(value, str):
            try:
                raw = from_base64(value)
            except ValueError as problem:
                raise ValueError(f"not base64: {problem}") from None
            if self._format is None:
                raise ValueError("this model takes no encoded pictures")
            return decode_image(raw, self._format)
        channels, height, width = self._shape
        wanted = f"must be base64 text or nested lists [{channels}][{height}][{width}] of integers 0-255"
        if not isinstance(value, list):
            raise ValueError(f"{wanted}, got {repr(value)[:_SHOWN]}")  # noqa: TRY004 - a ValueError is what the caller collects
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
