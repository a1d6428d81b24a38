"""The JSON header of an Open Inference Protocol request, read by the decoder that is fastest for its size."""

import math
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import simdjson

from app.serving.not_json import not_json
from app.serving.tensors import KEPT_BYTES
from app.serving.types import Array

# From this size on simdjson's flat buffers beat a list of Python floats (512 numbers: 7 against 34 µs).
_LARGE = 4096
_FEW = 64  # lists in a header whose data is flat
_COUNTED = 0xFFFFFF  # elements of a list that simdjson counts
# datatype: (what simdjson gives, its numpy type, the tensor's numpy type)
_BUFFERS: dict[str, tuple[str, type[np.generic], type[np.generic]]] = {
    "FP32": ("d", np.float64, np.float32),
    "FP64": ("d", np.float64, np.float64),
    "INT64": ("i", np.int64, np.int64),
    "INT32": ("i", np.int64, np.int32),
    "UINT8": ("i", np.int64, np.uint8),
}
_RANGES = {"INT32": (-(2**31), 2**31 - 1), "UINT8": (0, 255)}


class InferInput(msgspec.Struct, gc=False):
    """One input tensor of a request; `data` is still JSON text."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.Raw()


class InferOutput(msgspec.Struct, gc=False):
    """One output that the caller asks for."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct, gc=False):
    """The JSON header of an infer request."""

    inputs: list[InferInput]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[InferOutput] | None = None


_REQUEST = msgspec.json.Decoder(InferRequest)

_local = threading.local()  # a simdjson parser may not be shared, and large bodies are decoded in threads


def read_request(header: bytes, fits: Callable[[InferInput], bool]) -> tuple[InferRequest, dict[str, Array]]:
    """The request, and flat arrays of those inputs whose `data` was parsed with it; Malformed if malformed.

    The data of an input that does not fit by its name, type or shape is not looked at.
    """
    if len(header) > _LARGE and (large := _read_large(header, fits)):
        return large
    try:
        return _REQUEST.decode(header), {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(header, error, "the inference request is malformed", "inputs") from None


def may_name_priority(body: bytes, json_bytes: int) -> bool:
    """False if the first `json_bytes` of a request surely hold no `priority`; they are looked through, not read."""
    # A name may be written with escapes.
    return body.find(b'"priority"', 0, json_bytes) >= 0 or body.find(b"\\", 0, json_bytes) >= 0


def _read_large(header: bytes, fits: Callable[[InferInput], bool]) -> tuple[InferRequest, dict[str, Array]] | None:
    """None if the header is not the plain case: the other decoder then says why, or reads it."""
    parser = getattr(_local, "parser", None) or simdjson.Parser()
    _local.parser = None
    try:
        read = _convert(parser.parse(header), header, fits)
    except (
        ValueError,
        TypeError,
        LookupError,
        RuntimeError,
        AttributeError,
        FloatingPointError,
        msgspec.ValidationError,
    ):
        return None
    if len(header) <= KEPT_BYTES:
        _local.parser = parser  # after an error something may still refer to it, and it is dropped
    return read


def _convert(
    document: Any,  # noqa: ANN401 - a simdjson object
    header: bytes,
    fits: Callable[[InferInput], bool],
) -> tuple[InferRequest, dict[str, Array]]:
    """Raises something unless the header holds just the lists that it should: then no data is nested but as it may.

    A bracket in a text counts as well, and is left to the other decoder. Numbers are read last: there are as many of
    them then as the shapes say.
    """
    keys = _keys(document)
    request = msgspec.convert({"inputs": [], **_plain(document, keys - {"inputs"})}, InferRequest)
    expected = 1 + (request.outputs is not None)
    found: dict[str, tuple[Any, str]] = {}
    for item in document["inputs"]:
        keys = _keys(item)
        read = msgspec.convert(_plain(item, keys - {"data"}), InferInput)
        expected += 1
        if "data" in keys:
            if read.name in found or read.datatype not in _BUFFERS or not fits(read):
                raise ValueError("for the other decoder")
            found[read.name] = item["data"], read.datatype
            expected += _lists(item["data"], read.shape)
        request.inputs.append(read)
    if not _holds(header, expected):
        raise ValueError("nested otherwise")
    return request, {name: _numbers(*data) for name, data in found.items()}


def _keys(item: Any) -> set[str]:  # noqa: ANN401 - a simdjson object
    keys = list(item.keys())
    found = set(keys)
    if len(found) != len(keys):
        raise ValueError("a key is repeated")  # of which the other decoder takes the last
    return found


def _holds(header: bytes, lists: int) -> bool:
    """True if that is the number of brackets that open in the header."""
    if lists > _FEW:
        return header.count(b"[") == lists
    at = -1
    for _ in range(lists):  # a few jumps to the next are several times as fast as counting
        at = header.find(b"[", at + 1)
        if at < 0:
            return False
    return header.find(b"[", at + 1) < 0


def _lists(data: Any, shape: list[int]) -> int:  # noqa: ANN401 - a simdjson array
    """How many lists `data` is: one if it is flat; an error if it is flat or nested, but not as its shape."""
    if len(shape) == 1 or not len(data) or not isinstance(data[0], simdjson.Array):
        if len(data) != min(math.prod(shape), _COUNTED):
            raise ValueError("another number of elements")
        return 1
    if 0 in shape:
        raise ValueError("no elements")
    level, lists = [data], 0
    for size, nested in zip(shape, [True] * (len(shape) - 1) + [False], strict=True):
        lists += len(level)
        if set(map(len, level)) != {size}:
            raise ValueError("ragged")
        if nested:
            level = [part for parts in level for part in parts]
    return lists


def _numbers(data: Any, datatype: str) -> Array:  # noqa: ANN401 - a simdjson array
    """Flat numbers of a list, however it is nested; an error if one has another type or is out of range."""
    of_type, parsed, dtype = _BUFFERS[datatype]
    numbers = np.frombuffer(data.as_buffer(of_type=of_type), parsed)
    if datatype in _RANGES:
        low, high = _RANGES[datatype]
        if numbers.size and (numbers.min() < low or numbers.max() > high):
            raise ValueError("out of range")
    with np.errstate(over="raise"):
        return numbers.astype(dtype)


def _plain(item: Any, keys: set[str]) -> dict[str, Any]:  # noqa: ANN401 - a simdjson object
    """The values of these keys as Python's."""
    found: dict[str, Any] = {}
    for key in keys:
        value = item[key]
        if isinstance(value, simdjson.Object):
            value = value.as_dict()
        elif isinstance(value, simdjson.Array):
            value = value.as_list()
        found[key] = value
    return found
