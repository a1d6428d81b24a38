"""Protocol buffers to tensors and back; what a request may hold is checked by the same codec as REST's."""

import math
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from app.core.errors import InvalidTensor, Malformed
from app.core.signature import Tensor
from app.gateway.grpc.stubs import service_pb2 as pb
from app.serving.effort import Wanted
from app.serving.oip import Inference, OipCodec, read_controls, refuse_extensions
from app.serving.oip_request import InferOutput
from app.serving.tensors import DTYPES, from_raw, range_error, to_raw
from app.serving.types import Array, Tensors

# Where the protocol keeps the elements of a datatype when they do not travel as raw bytes.
_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parameters_of(message: Message) -> dict[str, Any]:
    """The `parameters` of a request, tensor or output as plain values."""
    given: dict[str, Any] = {}
    for name, parameter in message.parameters.items():  # type: ignore[attr-defined] # every one that is passed has them
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise Malformed.at("parameters", name, msg="has no value")
        given[name] = getattr(parameter, kind)
    return given


def read_infer(request: pb.ModelInferRequest, codec: OipCodec) -> Inference:
    """Tensors, rows, wanted outputs and controls. Malformed, InvalidTensor or NotBuilt as for REST."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidTensor.at(
            "raw_input_contents",
            msg=f"holds {len(raw)} tensors for {len(request.inputs)} inputs: send all of them raw, or none",
        )
    blobs = iter(raw)

    def read(item: pb.ModelInferRequest.InferInputTensor, tensor: Tensor) -> Array:
        if item.parameters:
            refuse_extensions(parameters_of(item))
        if not raw:
            return _elements(item, tensor)
        if item.HasField("contents"):
            raise Malformed.at("inputs", item.name, msg="has both `contents` and raw_input_contents: send one")
        return from_raw(memoryview(next(blobs)), tensor, item.shape, codec.endpoint)

    inputs = codec.gather(request.inputs, read)
    parameters = parameters_of(request) if request.parameters else {}
    asked = [InferOutput(output.name, parameters_of(output)) for output in request.outputs]
    rows, outputs = codec.rows(inputs), codec.select(asked, parameters)
    if rows > codec.limit.sure_rows:
        codec.limit.check_rows(rows, outputs)
    return Inference(inputs, rows, outputs, request.id, *read_controls(parameters))


def _elements(item: pb.ModelInferRequest.InferInputTensor, tensor: Tensor) -> Array:
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        raise InvalidTensor.at(
            "inputs",
            item.name,
            msg=f"{tensor.datatype} has no typed contents: send raw_input_contents",
            type="datatype",
        )
    given = getattr(item.contents, field)
    if other := [found.name for found, _ in item.contents.ListFields() if found.name != field]:
        raise InvalidTensor.at(
            "inputs", item.name, msg=f"{tensor.datatype} belongs into `{field}`, not `{other[0]}`", type="datatype"
        )
    count = math.prod(item.shape)
    if len(given) != count:  # before they become an array: of 64 MiB of the message it would have half a GiB
        raise InvalidTensor.at(
            "inputs",
            item.name,
            msg=f"`{field}` holds {len(given)} elements, its shape {list(item.shape)} needs {count}",
            type="shape",
        )
    try:
        elements = [element.decode() for element in given] if tensor.datatype == "BYTES" else given
        return np.array(elements, DTYPES[tensor.datatype]).reshape(item.shape)
    except UnicodeDecodeError:
        raise InvalidTensor.at("inputs", item.name, msg="BYTES elements must be UTF-8 text", type="encoding") from None
    except OverflowError:
        raise range_error(tensor) from None


def write_infer(
    codec: OipCodec, outputs: Tensors, wanted: list[Wanted], version: str, request_id: str | None
) -> pb.ModelInferResponse:
    """The answer; tensors always travel as raw bytes, little-endian and row-major."""
    answer = pb.ModelInferResponse(model_name=codec.endpoint, model_version=version, id=request_id or "")
    for choice in wanted:
        tensor, array = codec.output(choice, outputs)
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        answer.raw_output_contents.append(to_raw(array, tensor.datatype))
    return answer


def write_large(
    codec: OipCodec, outputs: Tensors, wanted: list[Wanted], version: str, request_id: str | None
) -> pb.ModelInferResponse:
    """As `write_infer`; PayloadTooLarge if the answer is larger than it may be."""
    codec.limit.check(outputs, wanted)
    return write_infer(codec, outputs, wanted, version, request_id)


def fill(document: dict[str, Any], message: Message) -> Message:
    """A message with the fields of a JSON document, as REST would answer it."""
    filled: Message = ParseDict(document, message)
    return filled
