"""bfloat16, which NumPy does not have: its values are held as float32, of which it is the upper half.

Rounded to nearest, ties to even, as hardware does it; NaN stays NaN.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.serving.types import Array

ONNX_NAME = "tensor(bfloat16)"
Run = Callable[..., list[Array]]  # (names of outputs, inputs by name, options)
_ONNX_TYPE = 16  # onnx.TensorProto.BFLOAT16; the gateway has no onnx package
_QUIET_NAN = 0x7FC0


def to_bits(values: Array) -> npt.NDArray[np.uint16]:
    """The 16 bits of each float32."""
    floats = np.ascontiguousarray(values, np.float32)
    bits = floats.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(floats), np.uint16(_QUIET_NAN), rounded)


def from_bits(bits: Array) -> npt.NDArray[np.float32]:
    """The inverse of `to_bits`, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def runner(session: ort.InferenceSession) -> Run:
    """`session.run`, or the same for a graph with bfloat16 inputs or outputs, which that refuses as arrays."""
    kinds = {node.name: node.type for node in session.get_inputs()}
    if ONNX_NAME not in {*kinds.values(), *(node.type for node in session.get_outputs())}:
        plain: Run = session.run
        return plain

    def run(outputs: Sequence[str], feeds: Mapping[str, Array], options: ort.RunOptions | None = None) -> list[Array]:
        values = {name: _value(array, kinds[name]) for name, array in feeds.items()}
        return [_array(answer) for answer in session.run_with_ort_values(list(outputs), values, options)]

    return run


def _value(array: Array, kind: str) -> ort.OrtValue:
    if kind != ONNX_NAME:
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(to_bits(array), _ONNX_TYPE)


def _array(value: Any) -> Array:  # noqa: ANN401 - an OrtValue
    if value.data_type() != ONNX_NAME:
        found: Array = value.numpy()
        return found
    shape = value.shape()
    # The one way to the bits of a bfloat16 value; they belong to `value`, hence the copy.
    memory = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr())
    return from_bits(np.array(memory, np.uint16)).reshape(shape)
