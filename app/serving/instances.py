"""The REST body of a prediction, {"instances": [...]}, to tensors.

Bodies that are right, nearly all, take the fast decoder, which is built from the signature once. What it refuses goes
through `careful`, which reads the same body slowly and says exactly what is wrong with which value, or finds that
nothing is (3.0 in an integer column).
"""

import threading
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import simdjson

from app.core.errors import AimassError, Corrupt
from app.core.signature import Column, Signature
from app.serving.careful import TEXTS, CarefulImages, CarefulTable, from_base64
from app.serving.images import decode_image
from app.serving.nested import NestedDecoder
from app.serving.tensors import DTYPES, FLOAT32_MAX, INLINE_JSON_BYTES
from app.serving.types import Array, Tensors

_NUMBER = Annotated[float, msgspec.Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
_INTEGER = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_KINDS: dict[str, Any] = {"number": _NUMBER, "integer": _INTEGER, "boolean": bool, "category": str, "text": str}


class InstanceDecoder(Protocol):
    """Body bytes to tensors in the signature's order, and the number of rows.

    Bodies up to `inline_bytes` are decoded so quickly that the event loop may do it.
    """

    inline_bytes: int

    def __call__(self, body: bytes) -> tuple[Tensors, int]:
        """Malformed for a body that is not JSON, InvalidTensor with `errors` for values that do not fit."""
        ...


def instance_decoder(signature: Signature) -> InstanceDecoder:
    """The decoder for a signature; Corrupt if its columns cannot be filled from instances."""
    if signature.task == "inference":
        return NestedDecoder(signature)
    if any(column.type == "image" for column in signature.columns):
        if len(signature.columns) != 1 or signature.image is None or len(signature.inputs) != 1:
            raise Corrupt("signature.json: an image column must be the only one, with `image` and one input")
        return _Images(signature)
    return _Table(signature)


class _Table:
    """Rows of named values. A msgspec struct per model holds the columns in tensor order, each tensor a slice of it."""

    inline_bytes = INLINE_JSON_BYTES

    def __init__(self, signature: Signature) -> None:
        self._careful = CarefulTable(signature)
        ordered: list[Column] = []
        self._slices: list[tuple[slice, Any]] = []
        for tensor in signature.inputs:
            columns = sorted((c for c in signature.columns if c.tensor == tensor.name), key=lambda column: column.index)
            if [column.index for column in columns] != list(range(tensor.shape[-1])):
                raise Corrupt(
                    f"signature.json: the columns of '{tensor.name}' do not fill its {tensor.shape[-1]} places"
                )
            self._slices.append((slice(len(ordered), len(ordered) + len(columns)), DTYPES[tensor.datatype]))
            ordered += columns
        if len(ordered) != len(signature.columns):
            raise Corrupt("signature.json: a column belongs to no input tensor")
        self._decode = _struct_decoder(ordered).decode
        self._texts = [at for at, column in enumerate(ordered) if column.type in TEXTS]

    def __call__(self, body: bytes) -> tuple[Tensors, int]:
        try:
            instances = self._decode(body).instances
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._careful(body, error)
        rows = [msgspec.structs.astuple(instance) for instance in instances]
        if len(self._slices) == 1 and not self._texts:
            return (np.array(rows, self._slices[0][1]),), len(rows)
        cells = [list(row) for row in rows]
        for row in cells:
            for at in self._texts:
                row[at] = (row[at] or "").strip()  # as at ingest, so that " Oslo" is what training saw
        return tuple(np.array([row[part] for row in cells], dtype) for part, dtype in self._slices), len(rows)


def _struct_decoder(columns: list[Column]) -> msgspec.json.Decoder[Any]:
    """Decoder of {"instances": [row, …]}; a row's fields are f0, f1, … because a column's name may be any text."""
    fields = [(f"f{at}", _KINDS[c.type] | None if c.nullable else _KINDS[c.type]) for at, c in enumerate(columns)]
    names = {f"f{at}": column.name for at, column in enumerate(columns)}
    row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
    rows = Annotated[list[row], msgspec.Meta(min_length=1)]  # type: ignore[valid-type] # made at run time
    return msgspec.json.Decoder(msgspec.defstruct("Body", [("instances", rows)], forbid_unknown_fields=True, gc=False))


class _Images:
    """Pictures as base64 text or nested lists of 0-255, bare or under the column's name."""

    inline_bytes = 0  # a few bytes of PNG may be many megapixels

    def __init__(self, signature: Signature) -> None:
        if signature.image is None:  # the factory has checked; this tells the type checker
            raise Corrupt("signature.json: no `image`")
        self._format = signature.image
        self._column = signature.columns[0].name
        self._shape = signature.inputs[0].shape[1:]
        self._careful = CarefulImages(signature)
        self._local = threading.local()  # a parser may not be shared, and large bodies are decoded in threads

    def __call__(self, body: bytes) -> tuple[Tensors, int]:
        parser = getattr(self._local, "parser", None) or simdjson.Parser()
        self._local.parser = None
        try:
            images = self._read(parser.parse(body))
        except (ValueError, TypeError, LookupError, RuntimeError, UnicodeDecodeError, AimassError) as error:
            return self._careful(body, error)
        self._local.parser = parser  # after an error it may still be referred to, and is dropped
        return (np.stack(images),), len(images)

    def _read(self, document: Any) -> list[Array]:  # noqa: ANN401 - a simdjson object
        if list(document.keys()) != ["instances"]:
            raise ValueError("unknown keys")
        instances = document["instances"]
        if not isinstance(instances, simdjson.Array) or not len(instances):
            raise ValueError("no instances")
        return [self._picture(instance) for instance in instances]

    def _picture(self, instance: Any) -> Array:  # noqa: ANN401 - a simdjson value or a text
        if isinstance(instance, simdjson.Object):
            if list(instance.keys()) != [self._column]:
                raise ValueError("unknown column")
            instance = instance[self._column]
        if isinstance(instance, str):
            return decode_image(from_base64(instance), self._format)
        return self._pixels(instance)

    def _pixels(self, nested: Any) -> Array:  # noqa: ANN401 - a simdjson array
        channels, height, width = self._shape
        flat = channels == 1 and not isinstance(nested[0][0], simdjson.Array)  # [H][W]
        planes = [nested] if flat else nested
        if len(planes) != channels or any(len(p) != height or any(len(row) != width for row in p) for p in planes):
            raise ValueError("shape")
        values: Array = np.frombuffer(nested.as_buffer(of_type="i"), np.int64)
        if values.size != channels * height * width or values.min() < 0 or values.max() > 255:  # noqa: PLR2004 - a byte
            raise ValueError("range")
        return values.astype(np.uint8).reshape(self._shape)
