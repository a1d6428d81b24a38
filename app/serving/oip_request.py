"""The JSON header of an Open Inference Protocol request, read by the decoder that is fastest for its size."""

import threading
from typing import Any

import msgspec
import numpy as np
import simdjson

from app.core.errors import Malformed
from app.serving.types import Array

# From this size on simdjson's flat buffers beat a list of Python floats (512 numbers: 7 against 34 µs).
_LARGE = 4096
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


def read_request(header: bytes) -> tuple[InferRequest, dict[str, Array]]:
    """The request, and flat arrays of those inputs whose `data` was parsed with it; Malformed if malformed."""
    if len(header) > _LARGE and (large := _read_large(header)):
        return large
    try:
        return _REQUEST.decode(header), {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"the inference request is malformed: {error}") from None


def may_name_priority(body: bytes, json_bytes: int) -> bool:
    """False if the first `json_bytes` of a request surely hold no `priority`; they are looked through, not read."""
    # A name may be written with escapes.
    return body.find(b'"priority"', 0, json_bytes) >= 0 or body.find(b"\\", 0, json_bytes) >= 0


def _read_large(header: bytes) -> tuple[InferRequest, dict[str, Array]] | None:
    """None if the header is not the plain case: the other decoder then says why, or reads it."""
    parser = getattr(_local, "parser", None) or simdjson.Parser()
    _local.parser = None
    try:
        read = _convert(parser.parse(header))
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
    _local.parser = parser  # after an error something may still refer to it, and it is dropped
    return read


def _convert(document: Any) -> tuple[InferRequest, dict[str, Array]]:  # noqa: ANN401 - a simdjson object
    fields = {key: document[key] for key in document.keys() if key != "inputs"}  # noqa: SIM118 - not a dict
    request = msgspec.convert({"inputs": [], **_plain(fields)}, InferRequest)
    arrays: dict[str, Array] = {}
    for item in document["inputs"]:
        keys = list(item.keys())
        read = msgspec.convert(_plain({key: item[key] for key in keys if key != "data"}), InferInput)
        if "data" in keys:
            if read.name in arrays:
                raise ValueError("given twice")
            arrays[read.name] = _numbers(item["data"], read.datatype)
        request.inputs.append(read)
    return request, arrays


def _numbers(data: Any, datatype: str) -> Array:  # noqa: ANN401 - a simdjson array
    """Flat numbers of a nested or flat list; an error if one has another type or is out of range.

    How the list is nested is not looked at: only the number of elements has to fit the shape.
    """
    of_type, parsed, dtype = _BUFFERS[datatype]
    numbers = np.frombuffer(data.as_buffer(of_type=of_type), parsed)
    if datatype in _RANGES:
        low, high = _RANGES[datatype]
        if numbers.size and (numbers.min() < low or numbers.max() > high):
            raise ValueError("out of range")
    with np.errstate(over="raise"):
        return numbers.astype(dtype)


def _plain(items: dict[str, Any]) -> dict[str, Any]:
    """Values of a simdjson object as Python's."""
    return {
        key: value.as_dict()
        if isinstance(value, simdjson.Object)
        else value.as_list()
        if isinstance(value, simdjson.Array)
        else value
        for key, value in items.items()
    }
