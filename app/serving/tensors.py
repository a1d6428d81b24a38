"""Tensors on the wire: Open Inference Protocol datatypes, their numpy types, raw bytes and JSON values."""

import math
import re
import struct
from collections.abc import Sequence
from functools import cache
from itertools import islice, takewhile
from typing import Annotated, Any

import msgspec
import numpy as np

from app.core.errors import InvalidInput, InvalidTensor
from app.core.signature import Tensor
from app.serving.bfloat16 import from_bits, to_bits
from app.serving.types import Array

# BYTES elements are Python strings in an object array, which is what ONNX Runtime takes; BF16 is held as float32.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<f4"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
# Datatypes whose elements have another size on the wire than in memory.
_RAW = {"BF16": np.dtype("<u2")}
# What the protocol has no JSON form for.
NO_JSON = frozenset({"FP16", "BF16"})
# JSON up to this size may be decoded on the event loop. Its bytes do not say how long that takes: rows of a dozen
# numbers half a millisecond to one, as many lists or texts without length 25. So instances are asked how many values
# they hold, too: so many take a millisecond, and so few bytes as that whatever they hold. The Open Inference Protocol
# is not asked, since it makes single calls of C of them, beside which no thread goes on wherever they are made.
INLINE_JSON_BYTES = 256 * 1024
INLINE_VALUES = 4096
SURE_JSON_BYTES = 4096
# simdjson keeps a dozen times the bytes of the largest body that a parser has read: after more than this it is let go.
KEPT_BYTES = 1024 * 1024
# Elements of longer JSON are counted before they become Python's, which takes a dozen times as much.
_COUNTED_BYTES = 64 * 1024
_MAX_DIMENSION = 2**31 - 1
# Elements that a shape may stand for: numpy counts their bytes in 63 bits, at up to 8 an element, and leaves out zeros.
_MAX_ELEMENTS = 2**60 - 1
FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_ROUNDS = 3.4028235677973362e38  # the last that becomes FLOAT32_MAX: clients write it as 3.4028235e38
FLOAT16_MAX = float(np.finfo(np.float16).max)
_LENGTH = struct.Struct("<I")
_OPENING = re.compile(rb"[\s\[]*")
_TEXT_OR_LIST = re.compile(rb'"(?:[^"\\]++|\\.)*+"|\[', re.DOTALL)


def _integer(low: int, high: int) -> Any:  # noqa: ANN401 - a type made at run time
    return Annotated[int, msgspec.Meta(ge=low, le=high)]


# What one JSON element may be. Null is NaN, which JSON cannot write: a missing value.
ELEMENTS: dict[str, Any] = {
    "BOOL": bool,
    "UINT8": _integer(0, 2**8 - 1),
    "UINT16": _integer(0, 2**16 - 1),
    "UINT32": _integer(0, 2**32 - 1),
    "UINT64": Annotated[int, msgspec.Meta(ge=0)],  # numpy refuses what does not fit, here and below
    "INT8": _integer(-(2**7), 2**7 - 1),
    "INT16": _integer(-(2**15), 2**15 - 1),
    "INT32": _integer(-(2**31), 2**31 - 1),
    "INT64": int,
    "FP16": Annotated[float, msgspec.Meta(ge=-FLOAT16_MAX, le=FLOAT16_MAX)] | None,
    "BF16": Annotated[float, msgspec.Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)] | None,
    "FP32": Annotated[float, msgspec.Meta(ge=-_FLOAT32_ROUNDS, le=_FLOAT32_ROUNDS)] | None,
    "FP64": float | None,
    "BYTES": str,
}


def check_shape(tensor: Tensor, datatype: str, shape: Sequence[int], model: str) -> None:
    """InvalidTensor unless `datatype` and `shape` fit the declared `tensor`; the words are those that clients know."""
    if datatype != tensor.datatype:
        raise InvalidTensor.at(
            "inputs",
            tensor.name,
            msg=f"inference input '{tensor.name}' data-type is '{datatype}', "
            f"but model '{model}' expects '{tensor.datatype}'",
            type="datatype",
        )
    fits = len(shape) == len(tensor.shape) and all(
        want in (-1, got) and 0 <= got <= _MAX_DIMENSION for want, got in zip(tensor.shape, shape, strict=True)
    )
    # Only a size of zero lets so large a shape through: without one, the elements would have to be in the request.
    huge = fits and 0 in shape and math.prod(filter(None, shape)) > _MAX_ELEMENTS
    if not fits or 0 in shape[:1] or huge:
        rule = "its sizes beside 0 make 2^60 elements or more" if huge else "-1 is any size, the first at least 1"
        raise InvalidTensor.at(
            "inputs",
            tensor.name,
            msg=f"unexpected shape for input '{tensor.name}' for model '{model}'. "
            f"Expected {list(tensor.shape)}, got {list(shape)}; {rule}",
            type="shape",
        )


def from_raw(raw: memoryview, tensor: Tensor, shape: Sequence[int], model: str) -> Array:
    """The array in `raw`: little-endian, row-major; BYTES elements are a uint32 length and UTF-8 text. Not copied."""
    count = math.prod(shape)
    if tensor.datatype == "BYTES":
        return _strings(raw, tensor, count, model).reshape(shape)
    dtype = _RAW.get(tensor.datatype) or DTYPES[tensor.datatype]
    if len(raw) != count * dtype.itemsize:
        raise _size_error(tensor, count * dtype.itemsize, len(raw), model)
    if tensor.datatype == "BOOL":
        return np.frombuffer(raw, np.uint8).astype(np.bool_).reshape(shape)
    if tensor.datatype == "BF16":
        return from_bits(np.frombuffer(raw, dtype)).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def to_raw(array: Array, datatype: str) -> bytes:
    """The inverse of `from_raw`."""
    if datatype == "BF16":
        return to_bits(array).astype(_RAW["BF16"]).tobytes()
    if datatype != "BYTES":
        return np.ascontiguousarray(array, DTYPES[datatype]).tobytes()
    texts = [str(element).encode() for element in array.ravel()]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))


def from_json(raw: bytes | msgspec.Raw, tensor: Tensor, shape: Sequence[int]) -> Array:
    """The array in JSON text `raw`: nested or flat, row-major, each element exactly of the tensor's type."""
    if tensor.datatype in NO_JSON:
        msg = f"{tensor.datatype} has no JSON form: send it as binary tensor data"
        raise InvalidTensor.at("inputs", tensor.name, msg=msg, type="datatype")
    text = bytes(raw)
    depth = _depth(text)
    if depth not in {1, len(shape)}:
        raise _nesting_error(tensor, shape)
    if len(text) > _COUNTED_BYTES:
        _check_count(text, tensor, shape, depth)
    try:
        values = _decoder(tensor.datatype, depth).decode(raw)
        array: Array = np.array(values, DTYPES[tensor.datatype])
    except msgspec.ValidationError as error:
        raise InvalidTensor.at(
            "inputs", tensor.name, "data", msg=f"{error}; the datatype is {tensor.datatype}", type="type"
        ) from None
    except OverflowError:  # an integer beyond 64 bits
        raise range_error(tensor, "data") from None
    except ValueError:  # the lists differ in length
        raise _nesting_error(tensor, shape) from None
    if depth > 1 and array.shape != tuple(shape):
        raise _nesting_error(tensor, shape)
    return shaped(array, tensor, shape)


def range_error(tensor: Tensor, *loc: str) -> InvalidInput:
    """The error of an integer that the tensor's datatype does not have."""
    limits = np.iinfo(DTYPES[tensor.datatype])
    msg = f"'{tensor.name}' is {tensor.datatype}, which goes from {limits.min} to {limits.max}"
    return InvalidTensor.at("inputs", tensor.name, *loc, msg=msg, type="range")


def _nesting_error(tensor: Tensor, shape: Sequence[int]) -> InvalidInput:
    return InvalidTensor.at(
        "inputs", tensor.name, msg=f"`data` must be a flat list or nested as its shape {list(shape)}", type="shape"
    )


def shaped(array: Array, tensor: Tensor, shape: Sequence[int]) -> Array:
    """`array` in its declared shape; InvalidTensor if it holds another number of elements."""
    if array.size != math.prod(shape):
        raise _count_error(tensor, shape, str(array.size))
    return array.reshape(shape)


def _count_error(tensor: Tensor, shape: Sequence[int], count: str) -> InvalidInput:
    return InvalidTensor.at(
        "inputs",
        tensor.name,
        msg=f"`data` holds {count} elements, its shape {list(shape)} needs {math.prod(shape)}",
        type="shape",
    )


@cache
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = ELEMENTS[datatype]
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _depth(text: bytes) -> int:
    """How many lists open at the start of a JSON text."""
    start = _OPENING.match(text)
    return start.group().count(b"[") if start else 0


def _check_count(text: bytes, tensor: Tensor, shape: Sequence[int], depth: int) -> None:
    """InvalidTensor for more elements, in lists of this depth, than the shape has; empty lists count as one.

    A comma follows each but the last. Some may be in texts: those are counted themselves then, up to one too many.
    """
    most = math.prod(takewhile(bool, shape))
    count = text.count(b",") + 1
    if count > most and tensor.datatype == "BYTES":
        lists = sum(math.prod(shape[:level]) for level in range(depth))
        count = sum(1 for _ in islice(_TEXT_OR_LIST.finditer(text), most + lists + 1)) - lists
    if count > most:
        raise _nesting_error(tensor, shape) if depth > 1 else _count_error(tensor, shape, f"at least {count}")


def _strings(raw: memoryview, tensor: Tensor, count: int, model: str) -> Array:
    if count * _LENGTH.size > len(raw):
        raise _size_error(tensor, count * _LENGTH.size, len(raw), model)
    strings = np.empty(count, np.object_)
    at = 0
    for index in range(count):
        if at + _LENGTH.size > len(raw):
            raise _size_error(tensor, at + _LENGTH.size, len(raw), model)
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > len(raw):
            raise _size_error(tensor, at + length, len(raw), model)
        try:
            strings[index] = str(raw[at : at + length], "utf-8")
        except UnicodeDecodeError:
            raise InvalidTensor.at(
                "inputs", tensor.name, index, msg="BYTES elements must be UTF-8 text", type="encoding"
            ) from None
        at += length
    if at != len(raw):
        raise _size_error(tensor, at, len(raw), model)
    return strings


def _size_error(tensor: Tensor, expected: int, got: int, model: str) -> InvalidInput:
    return InvalidTensor.at(
        "inputs",
        tensor.name,
        msg=f"unexpected size for input '{tensor.name}', expecting {expected} bytes for model '{model}', got {got}",
        type="size",
    )
