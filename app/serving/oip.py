"""Open Inference Protocol v2 over REST: request bytes to tensors, tensors to answer bytes; JSON and binary, mixed.

Binary tensor data: the JSON header, then the raw tensors in the order of `inputs`; `Inference-Header-Content-Length` is
the header's length, 0 means that the body is one raw tensor.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import orjson

from app.core.errors import InvalidInput, InvalidTensor, Malformed, NotBuilt
from app.core.signature import Signature, Tensor
from app.serving.answer_limit import AnswerLimit
from app.serving.classification import classified
from app.serving.effort import Wanted, inline_raw_bytes, inline_rows
from app.serving.oip_request import InferInput, InferOutput, read_request
from app.serving.tensors import NO_JSON, check_shape, from_json, from_raw, shaped, to_raw
from app.serving.types import Array, Pieces, Tensors
from app.serving.waiting import too_many_rows

EXTENSIONS = ("binary_tensor_data", "parameters", "classification")
PLATFORM = "onnxruntime_onnx"
_MAX_TIMEOUT = 10**15  # microseconds
_MAX_PRIORITY = 2**64 - 1
NO_CONTROLS: tuple[float | None, int] = (None, 0)


class GivenInput(Protocol):
    """An input tensor of a request, whatever carries its values."""

    @property
    def name(self) -> str:
        """Of the tensor."""
        ...

    @property
    def datatype(self) -> str:
        """The protocol's word for the type."""
        ...

    @property
    def shape(self) -> Sequence[int]:
        """With the batch."""
        ...


Given = TypeVar("Given", bound=GivenInput)


@dataclass(slots=True)
class Inference:
    """A decoded request. `outputs` are in the order to answer; `priority` 1 goes first, 0 is the default."""

    inputs: Tensors
    rows: int
    outputs: "list[Wanted]"
    id: str | None = None
    timeout_s: float | None = None
    priority: int = 0


@dataclass(slots=True)
class Encoded:
    """An answer, in pieces if it is large: `header_length` is set if binary tensors follow the JSON."""

    body: bytes | Pieces
    header_length: int | None = field(default=None)


class OipCodec:
    """Reads and writes infer requests of one endpoint.

    More than `max_rows`, and answers of more than `max_answer` bytes, are refused, and counted in `rejected`.
    With binary tensors of up to `inline_raw_bytes`, and with `inline_rows` rows, it is quick enough for the event loop.
    """

    def __init__(
        self,
        endpoint: str,
        signature: Signature,
        max_rows: float = math.inf,
        rejected: Counter[str] | None = None,
        max_answer: float = math.inf,
    ) -> None:
        self.endpoint = endpoint
        self.inline_raw_bytes = inline_raw_bytes(signature)
        self.inline_rows = inline_rows(signature)
        classes = len(signature.classes)  # which /predict and V1 name beside their numbers
        self.all_outputs = [Wanted(at, binary=False, classes=classes) for at in range(len(signature.outputs))]
        self._max_rows = max_rows
        self._rejected = Counter[str]() if rejected is None else rejected
        self.limit = AnswerLimit(signature, max_answer, self._rejected)
        self._sure_rows = self.limit.sure_rows
        self._inputs = {tensor.name: (at, tensor) for at, tensor in enumerate(signature.inputs)}
        self._outputs = {tensor.name: at for at, tensor in enumerate(signature.outputs)}
        self._signature = signature

    def decode(self, body: bytes, header_length: int | None) -> Inference:
        """Malformed for a malformed request, InvalidTensor for tensors that do not fit, NotBuilt for extensions.

        PayloadTooLarge for too many rows, also for their answer.
        """
        if header_length == 0:
            return self._raw(body)
        if header_length is not None and not 0 < header_length <= len(body):
            raise Malformed(f"inference header size should be in range (0, {len(body)}), got: {header_length}")
        header = body if header_length in {None, len(body)} else body[:header_length]
        request, parsed = read_request(header, self._fits)
        controls = read_controls(request.parameters) if request.parameters else NO_CONTROLS
        inputs = self._tensors(request.inputs, parsed, memoryview(body)[len(header) :])
        outputs = self.select(request.outputs, request.parameters)
        rows = self.rows(inputs)
        if rows > self._sure_rows:
            self.limit.check_rows(rows, outputs)
        return Inference(inputs, rows, outputs, request.id, *controls)

    def encode(self, outputs: Tensors, wanted: Sequence[Wanted], version: str, request_id: str | None) -> Encoded:
        """The answer's bytes. A number that is not finite is null in JSON and itself in binary."""
        entries: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for choice in wanted:
            tensor, array = self.output(choice, outputs)
            entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(array.shape)}
            if choice.binary:
                raw = to_raw(array, tensor.datatype)
                entry["parameters"] = {"binary_data_size": len(raw)}
                blobs.append(raw)
            elif tensor.datatype in NO_JSON:
                raise no_json_form(tensor)
            else:
                flat = array.reshape(-1)
                entry["data"] = flat.tolist() if flat.dtype == object else np.ascontiguousarray(flat)
            entries.append(entry)
        answer: dict[str, Any] = {"model_name": self.endpoint, "model_version": version}
        if request_id is not None:
            answer["id"] = request_id
        answer["outputs"] = entries
        header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        if not any(blobs):
            return Encoded(header)
        return Encoded(b"".join((header, *blobs)), len(header))

    def metadata(self, versions: Sequence[str]) -> dict[str, Any]:
        """The answer of GET /v2/models/{model}."""
        tensors = {
            key: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in group]
            for key, group in (("inputs", self._signature.inputs), ("outputs", self._signature.outputs))
        }
        return {"name": self.endpoint, "versions": list(versions), "platform": PLATFORM, **tensors}

    def gather(self, given: Sequence[Given], read: Callable[[Given, Tensor], Array]) -> Tensors:
        """The given inputs in the signature's order, each checked by name, type and shape before `read` gets it."""
        if len(given) != len(self._inputs):
            raise InvalidTensor.at(
                "inputs",
                msg=f"expected {len(self._inputs)} inputs but got {len(given)} inputs for model '{self.endpoint}'",
            )
        arrays: list[Array | None] = [None] * len(given)
        for item in given:
            at, tensor = self._inputs.get(item.name, (-1, None))
            if tensor is None:
                raise InvalidTensor.at(
                    "inputs",
                    item.name,
                    msg=f"unexpected inference input '{item.name}' for model '{self.endpoint}'",
                    type="unknown",
                )
            if arrays[at] is not None:
                raise InvalidTensor.at("inputs", item.name, msg=f"input '{item.name}' is given twice")
            check_shape(tensor, item.datatype, item.shape, self.endpoint)
            if self._signature.batched and item.shape[0] > self._max_rows:  # before their elements are read
                self._rejected["too_large"] += 1
                raise too_many_rows(item.shape[0], self._max_rows)
            arrays[at] = read(item, tensor)
        tensors = tuple(array for array in arrays if array is not None)
        if self._signature.batched and len({array.shape[0] for array in tensors}) != 1:
            raise InvalidTensor.at("inputs", msg="the inputs differ in their first dimension, the batch", type="shape")
        return tensors

    def rows(self, inputs: Tensors) -> int:
        """How many rows the inputs hold, as the batcher counts them."""
        return inputs[0].shape[0] if self._signature.batched else 1

    def _fits(self, item: InferInput) -> bool:
        """False if `gather` refuses the input before its elements are read."""
        _, tensor = self._inputs.get(item.name, (-1, None))
        if tensor is None:
            return False
        try:
            check_shape(tensor, item.datatype, item.shape, self.endpoint)
        except InvalidTensor:
            return False
        return not self._signature.batched or item.shape[0] <= self._max_rows

    def _tensors(self, given: list[InferInput], parsed: dict[str, Array], blobs: memoryview) -> Tensors:
        offset = 0

        def read(item: InferInput, tensor: Tensor) -> Array:
            nonlocal offset
            numbers = parsed.get(item.name)
            size = _binary_size(item, has_data=numbers is not None or len(item.data) > 0)
            if size is None:
                return _json_tensor(item, tensor) if numbers is None else shaped(numbers, tensor, item.shape)
            if offset + size > len(blobs):
                raise InvalidTensor.at(
                    "inputs",
                    item.name,
                    msg=f"unexpected size for input '{item.name}', "
                    f"expecting {offset + size - len(blobs)} additional bytes for model '{self.endpoint}'",
                    type="size",
                )
            offset += size
            return from_raw(blobs[offset - size : offset], tensor, item.shape, self.endpoint)

        tensors = self.gather(given, read)
        if offset != len(blobs):
            raise InvalidTensor.at(
                "inputs", msg=f"unexpected additional input data for model '{self.endpoint}'", type="size"
            )
        return tensors

    def select(self, asked: Sequence[InferOutput] | None, parameters: dict[str, Any] | None) -> list[Wanted]:
        """The outputs that a request asks for, in its order; all of them if it names none."""
        default = _flag(parameters, "binary_data_output", default=False)
        if not asked:
            return [Wanted(at, default) for at in range(len(self._outputs))]
        chosen: list[Wanted] = []
        named = set[str]()
        for output in asked:
            if output.name in named:
                raise InvalidTensor.at("outputs", output.name, msg=f"output '{output.name}' is asked for twice")
            named.add(output.name)
            if output.name not in self._outputs:
                raise InvalidTensor.at(
                    "outputs",
                    output.name,
                    msg=f"unexpected inference output '{output.name}' for model '{self.endpoint}'",
                    type="unknown",
                )
            refuse_extensions(output.parameters)
            binary = _flag(output.parameters, "binary_data", default=default)
            chosen.append(Wanted(self._outputs[output.name], binary, _classes(output)))
        return chosen

    def output(self, wanted: Wanted, outputs: Tensors) -> tuple[Tensor, Array]:
        """One answered output: the tensor as the answer declares it, and its values."""
        tensor, array = self._signature.outputs[wanted.at], outputs[wanted.at]
        return classified(tensor, array, wanted.classes, self._signature) if wanted.classes else (tensor, array)

    def _raw(self, body: bytes) -> Inference:
        """A body that is one tensor, batch 1, and nothing else."""
        if len(self._inputs) != 1:
            raise InvalidTensor.at(
                "inputs",
                msg=f"a raw binary request needs a model with one input, '{self.endpoint}' has {len(self._inputs)}",
            )
        tensor = self._signature.inputs[0]
        shape = [1, *tensor.shape[1:]] if self._signature.batched else list(tensor.shape)
        if tensor.datatype == "BYTES":
            if shape != [1]:
                raise InvalidTensor.at(
                    "inputs", tensor.name, msg="a raw binary BYTES tensor must have shape [1]", type="shape"
                )
            text = len(body).to_bytes(4, "little") + body
            inputs: Tensors = (from_raw(memoryview(text), tensor, shape, self.endpoint),)
        else:
            if shape.count(-1) > 1:
                raise InvalidTensor.at(
                    "inputs", tensor.name, msg="a raw binary request allows one variable dimension", type="shape"
                )
            if -1 in shape:
                known = math.prod(size for size in shape if size != -1)
                shape[shape.index(-1)] = len(body) // max(1, known * _item_size(tensor))
            inputs = (from_raw(memoryview(body), tensor, shape, self.endpoint),)
        outputs = [Wanted(at, binary=True) for at in range(len(self._outputs))]
        if self._sure_rows < 1:
            self.limit.check_rows(1, outputs)
        return Inference(inputs, 1, outputs)


def no_json_form(tensor: Tensor) -> InvalidInput:
    """The error of an output that is asked for as JSON."""
    msg = f"{tensor.datatype} has no JSON form: ask for binary_data"
    return InvalidTensor.at("outputs", tensor.name, msg=msg, type="datatype")


def _item_size(tensor: Tensor) -> int:
    return len(to_raw(np.zeros(1), tensor.datatype))


def _json_tensor(item: InferInput, tensor: Tensor) -> Array:
    if not len(item.data):
        raise InvalidTensor.at(
            "inputs", item.name, msg=f"input '{item.name}' has neither `data` nor `binary_data_size`", type="missing"
        )
    return from_json(item.data, tensor, item.shape)


def _binary_size(item: InferInput, *, has_data: bool) -> int | None:
    if not item.parameters:
        return None
    refuse_extensions(item.parameters)
    size = item.parameters.get("binary_data_size")
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Malformed.at("inputs", item.name, "parameters", "binary_data_size", msg="must be a whole number of bytes")
    if has_data:
        raise Malformed.at("inputs", item.name, msg="has both `data` and `binary_data_size`: send one")
    return size


def _flag(parameters: dict[str, Any] | None, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default) if parameters else default
    if not isinstance(value, bool):
        raise Malformed.at("parameters", name, msg="must be true or false")
    return value


def _classes(output: InferOutput) -> int:
    """How many classes the caller asks for; 0 for the output as it is."""
    wanted = output.parameters.get("classification") if output.parameters else None
    if wanted is None:
        return 0
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise Malformed.at(
            "outputs", output.name, "classification", msg="must be a whole number of classes, at least 1"
        )
    return wanted


def refuse_extensions(parameters: dict[str, Any] | None) -> None:
    """NotBuilt rather than an answer that silently lacks what was asked."""
    for name in parameters or ():
        if name.startswith("shared_memory_"):
            raise NotBuilt(f"the extension behind parameter '{name}' is not in this release")


def read_controls(parameters: dict[str, Any]) -> tuple[float | None, int]:
    """Check the reserved request parameters; (`timeout` in seconds, `priority`: 0 is the default). Others pass."""
    for name in parameters:
        if name.startswith("triton_"):
            raise Malformed.at("parameters", name, msg="parameters that start with triton_ are reserved")
    if any(parameters.get(name) for name in ("sequence_id", "sequence_start", "sequence_end")):
        raise NotBuilt("sequences (parameter 'sequence_id') are not in this release")
    timeout = _whole(parameters, "timeout", _MAX_TIMEOUT, f"a whole number of microseconds, at most {_MAX_TIMEOUT}")
    priority = _whole(
        parameters, "priority", _MAX_PRIORITY, f"a whole number, 1 for the highest, at most {_MAX_PRIORITY}"
    )
    return (timeout / 1e6 if timeout else None), priority


def _whole(parameters: dict[str, Any], name: str, most: int, what: str) -> int:
    value = parameters.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Malformed.at("parameters", name, msg=f"must be {what}")
    return value
