"""What an imported model takes and gives, from its graph."""

import re
from collections.abc import Iterable

from onnx import ModelProto, TensorProto, ValueInfoProto

from app.core.errors import InvalidData
from app.core.signature import Datatype, Tensor

DATATYPES: dict[int, Datatype] = {
    TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8", TensorProto.UINT16: "UINT16", TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64", TensorProto.INT8: "INT8", TensorProto.INT16: "INT16", TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64", TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64", TensorProto.STRING: "BYTES",
}  # fmt: skip
MAX_RANK = 32  # NumPy has 64 axes, and rows are stacked
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f"\\]')  # what requests would have to escape in JSON
Axes = tuple[int | str, ...]  # sizes; a variable axis by its name in the graph, or ""


def read_inputs(model: ModelProto) -> dict[str, tuple[Datatype, Axes]]:
    """Datatype and axes of each input that a caller must send. InvalidData for what no request can carry."""
    constant = {tensor.name for tensor in model.graph.initializer}
    found = {value.name: _described(value, "input") for value in model.graph.input if value.name not in constant}
    if not found:
        raise InvalidData.at("model", msg="the model takes no input: there is nothing that a request could send")
    return found


def read_outputs(model: ModelProto) -> dict[str, tuple[Datatype, Axes | None]]:
    """Datatype and declared axes of each output; None where the graph does not declare them."""
    if not model.graph.output:
        raise InvalidData.at("model", msg="the model gives no output")
    found: dict[str, tuple[Datatype, Axes | None]] = {}
    for value in model.graph.output:
        datatype = _datatype(value, "output")
        found[value.name] = datatype, _axes(value, "output") if value.type.tensor_type.HasField("shape") else None
    return found


def may_batch(inputs: Iterable[tuple[Datatype, Axes]]) -> bool:
    """True if the first axis of every input is variable and none is named differently from another."""
    firsts = [axes[0] if axes else 1 for _, axes in inputs]
    return all(isinstance(first, str) for first in firsts) and len({first for first in firsts if first}) <= 1


def tensor(name: str, datatype: Datatype, axes: Axes) -> Tensor:
    """In Open Inference Protocol terms."""
    return Tensor(name, datatype, tuple(-1 if isinstance(size, str) else size for size in axes))


def _described(value: ValueInfoProto, kind: str) -> tuple[Datatype, Axes]:
    datatype = _datatype(value, kind)
    if not value.type.tensor_type.HasField("shape"):
        raise InvalidData.at("model", msg=f"{kind} '{value.name}' declares no shape; export the model with one")
    return datatype, _axes(value, kind)


def _datatype(value: ValueInfoProto, kind: str) -> Datatype:
    if _NOT_IN_NAMES.search(value.name):
        words = "a quote, a backslash or a control character in its name; rename it and export the model again"
        raise InvalidData.at("model", msg=f"{kind} {value.name!a:.120} has {words}")
    if not value.type.HasField("tensor_type"):
        form = value.type.WhichOneof("value") or "untyped"
        remedy = "; with skl2onnx, export with options={'zipmap': False}" if form == "sequence_type" else ""
        raise InvalidData.at("model", msg=f"{kind} '{value.name}' is {form}, and only tensors can be served{remedy}")
    element = value.type.tensor_type.elem_type
    if element not in DATATYPES:
        known = ", ".join(DATATYPES.values())
        raise InvalidData.at("model", msg=f"{kind} '{value.name}' has element type {element}; served are {known}")
    return DATATYPES[element]


def _axes(value: ValueInfoProto, kind: str) -> Axes:
    dims = value.type.tensor_type.shape.dim
    check_rank(kind, value.name, len(dims))
    return tuple(dim.dim_value if dim.dim_value > 0 else dim.dim_param for dim in dims)


def check_rank(kind: str, name: str, rank: int) -> None:
    """InvalidData if the tensor has more axes than a request or an answer can have."""
    if rank > MAX_RANK:
        raise InvalidData.at("model", msg=f"{kind} '{name}' has {rank} axes, at most {MAX_RANK} are served; reshape it")
