"""Constant tensors of an untrusted model: what they claim against what they hold, before anything is allocated."""

import math
import re
from collections.abc import Mapping

from onnx import TensorProto

from app.core.errors import InvalidData
from app.core.version_folder import EXTERNAL

MAX_ELEMENTS = 2**34  # of one tensor: 64 GiB of 32-bit numbers, more than one file can hold
# Bits of an element; names of `TensorProto.DataType`. Types that are not here, such as UNDEFINED, are refused.
_BITS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8, "FLOAT16": 16,
    "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16, "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "FLOAT8E8M0": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4,
    "UINT2": 2, "INT2": 2,
}  # fmt: skip
# Where elements are kept when they are not raw bytes; those of all other types in `int32_data`.
_FIELDS = {
    "FLOAT": "float_data", "COMPLEX64": "float_data", "DOUBLE": "double_data", "COMPLEX128": "double_data",
    "INT64": "int64_data", "UINT64": "uint64_data", "UINT32": "uint64_data", "STRING": "string_data",
}  # fmt: skip
_PAIRS = {"COMPLEX64", "COMPLEX128"}


def check_tensor(tensor: TensorProto, beside: Mapping[str, int]) -> None:
    """InvalidData, naming the tensor, unless it holds just what its shape claims.

    Args:
        tensor: an initializer or a constant attribute.
        beside: sizes in bytes of the files that were sent with the model, by name.
    """
    name = tensor.name or "a constant"
    kind = next((n for n, v in TensorProto.DataType.items() if v == tensor.data_type), "")
    if kind != "STRING" and kind not in _BITS:
        raise InvalidData.at("model", msg=f"tensor '{name}' has an unknown element type ({tensor.data_type})")
    if any(size < 0 for size in tensor.dims):
        raise InvalidData.at("model", msg=f"tensor '{name}' has a negative dimension: {list(tensor.dims)}")
    count = math.prod(tensor.dims)
    if count > MAX_ELEMENTS:
        raise InvalidData.at(
            "model", msg=f"tensor '{name}' claims {count:,} elements; at most {MAX_ELEMENTS:,} are taken"
        )
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(tensor, name, -(-count * _BITS.get(kind, 0) // 8), beside)
        return
    held, wanted = _held(tensor, kind, count)
    if held != wanted:
        raise InvalidData.at(
            "model", msg=f"tensor '{name}' claims {count:,} elements {list(tensor.dims)} but does not hold them"
        )


def _held(tensor: TensorProto, kind: str, count: int) -> tuple[int, int]:
    """(what the tensor holds, what it should): bytes, or numbers in its typed field."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), -(-count * _BITS.get(kind, 8) // 8)
    field = getattr(tensor, _FIELDS.get(kind, "int32_data"))
    if kind != "STRING" and _BITS[kind] < 8:  # noqa: PLR2004 - a byte: several elements are packed into one number
        return len(field), -(-count * _BITS[kind] // 8)
    return len(field), count * (2 if kind in _PAIRS else 1)


def _check_external(tensor: TensorProto, name: str, size: int, beside: Mapping[str, int]) -> None:
    """External data stays in the model's own folder and within a file that was sent."""
    entry = {pair.key: pair.value for pair in tensor.external_data}
    if len(entry) != len(tensor.external_data):  # of two locations, other readers take the other one
        keys = [pair.key for pair in tensor.external_data]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidData.at("model", msg=f"tensor '{name}' has two entries '{twice:.40}' of external data; keep one")
    location = entry.get("location", "")
    if not EXTERNAL.fullmatch(location):
        raise InvalidData.at(
            "model",
            msg=f"tensor '{name}' refers to external data at {location!r:.120}; only a plain file name is allowed",
        )
    if location not in beside:
        raise InvalidData.at(
            "data",
            msg=f"tensor '{name}' refers to the file '{location}', which was not sent; add it as -F data=@{location}",
        )
    offset, length = (
        _whole(entry.get(key, default), name) for key, default in (("offset", "0"), ("length", str(size)))
    )
    if length != size or offset + length > beside[location]:
        raise InvalidData.at(
            "data", msg=f"tensor '{name}' needs {size:,} bytes; '{location}' does not have them at the place it names"
        )


def _whole(text: str, name: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise InvalidData.at(
            "model", msg=f"tensor '{name}' has an external offset or length that is no size: {text!r:.40}"
        )
    return int(text)
