"""Instances and predictions of models without columns: nested lists by tensor name, as KServe's V1 protocol has them.

An instance of a model that batches is one row, without the batch axis; of any other model it is whole tensors, and a
request holds one. The name may be left out where the model has one input.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from app.core.errors import InvalidInput, InvalidTensor
from app.core.signature import Signature, Tensor
from app.serving.not_json import not_json
from app.serving.row_limit import RowLimit
from app.serving.tensors import DTYPES, ELEMENTS, INLINE_JSON_BYTES, INLINE_VALUES, SURE_JSON_BYTES
from app.serving.types import Array, Tensors

_PATH = re.compile(r" - at `\$(?P<path>.*)`\Z", re.DOTALL)
_INSTANCE = re.compile(r"\.(instances)(?:\[(\d+)\])?")
_PLACE = re.compile(r"\[(\d+)\]")


class NestedDecoder:
    """`app.serving.instances.InstanceDecoder` over the inputs themselves."""

    inline_bytes = INLINE_JSON_BYTES
    pictures = False

    def __init__(self, signature: Signature, limit: RowLimit) -> None:
        self._limit = limit
        self._inputs = signature.inputs
        self._batched = signature.batched
        self._whole = msgspec.json.Decoder(_body(signature))
        self._bare = msgspec.json.Decoder(_bare_body(signature)) if len(signature.inputs) == 1 else None

    def __call__(self, body: bytes, before: Callable[[int], None] | None = None) -> tuple[Tensors, int]:  # noqa: ARG002 - as for pictures
        """Malformed for a body that is not JSON, InvalidTensor that names the instance and the element otherwise."""
        if self._batched and body.count(b",") >= self._limit.most:
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # for what follows to name
                self._limit.check(len(RAW_ROWS.decode(body).instances))  # takes a tenth of what their lists would
        return self._decoded(body)

    def at_once(self, body: bytes) -> tuple[Tensors, int] | None:
        """The same, or None for a body of so many values and lists that it may take more than a millisecond."""
        if len(body) > SURE_JSON_BYTES and body.count(b",") + body.count(b"[") >= INLINE_VALUES:
            return None
        return self._decoded(body)

    def _decoded(self, body: bytes) -> tuple[Tensors, int]:
        rows = self._read(body)
        self._limit.check(len(rows) if self._batched else 1)
        if not self._batched and len(rows) > 1:
            raise InvalidTensor.at(
                "instances", msg="this model does not batch: send one instance a request", type="too_long"
            )
        return tuple(self._tensor(at, tensor, rows) for at, tensor in enumerate(self._inputs)), len(rows)

    def _read(self, body: bytes) -> list[tuple[Any, ...]]:
        try:
            if self._bare is not None and not _names_inputs(body):
                return [(value,) for value in self._bare.decode(body).instances]
            return [msgspec.structs.astuple(row) for row in self._whole.decode(body).instances]
        except msgspec.ValidationError as error:
            raise _refusal(error, [tensor.name for tensor in self._inputs]) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(body, error, "the body is not JSON", "instances") from None

    def _tensor(self, at: int, tensor: Tensor, rows: list[tuple[Any, ...]]) -> Array:
        values = [row[at] for row in rows] if self._batched else rows[0][at]
        try:
            array = np.array(values, DTYPES[tensor.datatype])  # of all at once: one a row takes ten times as long
        except (ValueError, OverflowError):  # ragged lists, rows of different shapes, an integer that is too large
            raise _uneven(tensor) from None
        if array.ndim != len(tensor.shape) or any(
            w not in {-1, g} for w, g in zip(tensor.shape, array.shape, strict=True)
        ):
            if array.dtype == object and any(isinstance(element, list) for element in array.flat):
                raise _uneven(tensor)
            wanted = list(tensor.shape[1:] if self._batched else tensor.shape)
            got = list(array.shape[1:] if self._batched else array.shape)
            raise InvalidTensor.at("instances", tensor.name, msg=f"must have shape {wanted}, has {got}", type="shape")
        return array


def nested_predictions(signature: Signature, outputs: Tensors) -> bytes:
    """One object a row (or one in all, for a model that does not batch) of nested lists by output name."""
    names = [tensor.name for tensor in signature.outputs]
    plain = [_listed(array) for array in outputs]
    if not signature.batched:
        return orjson.dumps([dict(zip(names, plain, strict=True))], option=orjson.OPT_SERIALIZE_NUMPY)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*plain, strict=True)]
    return orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)


def bare_predictions(signature: Signature, outputs: Tensors) -> bytes:
    """As `nested_predictions` of a model with one output, without its name."""
    values = _listed(outputs[0])
    return orjson.dumps(list(values) if signature.batched else [values], option=orjson.OPT_SERIALIZE_NUMPY)


def _listed(array: Array) -> Any:  # noqa: ANN401 - an array, or what takes its place
    return array.tolist() if _no_json(array) else array


def _no_json(array: Array) -> bool:
    """What orjson does not take: texts in arrays, arrays of no axes, C's `long long`, as ONNX Runtime's integers."""
    return array.dtype == object or not array.ndim or (array.ndim == 1 and array.dtype.kind in "iu")


def _uneven(tensor: Tensor) -> InvalidInput:
    return InvalidTensor.at(
        "instances", tensor.name, msg="all instances need values of one shape and in range", type="shape"
    )


def _kind(tensor: Tensor, *, batched: bool) -> Any:  # noqa: ANN401 - a type made at run time
    kind: Any = ELEMENTS[tensor.datatype]
    for _ in tensor.shape[1:] if batched else tensor.shape:
        kind = list[kind]
    return kind


def _body(signature: Signature) -> Any:  # noqa: ANN401 - the same
    """Type of {"instances": [{input: nested}, …]}; fields are f0, f1, … since a tensor's name may be any text."""
    fields = [(f"f{at}", _kind(t, batched=signature.batched)) for at, t in enumerate(signature.inputs)]
    names = {f"f{at}": tensor.name for at, tensor in enumerate(signature.inputs)}
    row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
    return body_of(row)


def _bare_body(signature: Signature) -> Any:  # noqa: ANN401 - the same
    return body_of(_kind(signature.inputs[0], batched=signature.batched))


def body_of(kind: Any) -> Any:  # noqa: ANN401 - the same
    """Type of {"instances": [kind, …]}."""
    rows = Annotated[list[kind], msgspec.Meta(min_length=1)]
    return msgspec.defstruct("Body", [("instances", rows)], forbid_unknown_fields=True, gc=False)


RAW_ROWS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(body_of(msgspec.Raw))


def _names_inputs(body: bytes) -> bool:
    """True if the first instance is an object."""
    start = body.find(b"[")
    return body[start + 1 : start + 64].lstrip().startswith(b"{")


def _refusal(error: msgspec.ValidationError, names: list[str]) -> InvalidInput:
    """Msgspec's sentence with its path as a location; a tensor's name may hold what parts a path."""
    found = _PATH.search(str(error))
    path, loc = found["path"] if found else "", list[str | int]()
    if start := _INSTANCE.match(path):
        loc += [start[1]] if start[2] is None else [start[1], int(start[2])]
        path = path[start.end() :]
    name = max((name for name in names if path.startswith(f".{name}")), key=len, default=None)
    if name is not None:
        loc.append(name)
        path = path[len(name) + 1 :]
    loc += map(int, _PLACE.findall(path))
    return InvalidTensor.at(*loc, msg=_PATH.sub("", str(error)), type="type")
