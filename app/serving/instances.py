"""The REST body of a prediction, {"instances": [...]}, to tensors.

Bodies that are right, nearly all, take the fast decoder, which is built from the signature once. What it refuses goes
through `careful`, which reads the same body slowly and says exactly what is wrong with which value, or finds that
nothing is (3.0 in an integer column).
"""

import threading
from collections.abc import Callable
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import simdjson

from app.core.errors import Corrupt, InvalidTensor
from app.core.signature import Column, Signature
from app.serving.careful import TEXTS, CarefulImages, CarefulTable, beside_all, from_base64
from app.serving.nested import RAW_ROWS, NestedDecoder, body_of
from app.serving.row_limit import RowLimit
from app.serving.tensors import DTYPES, FLOAT32_MAX, INLINE_JSON_BYTES, INLINE_VALUES, KEPT_BYTES, SURE_JSON_BYTES
from app.serving.types import Array, Tensors

_NUMBER = Annotated[float, msgspec.Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
_INTEGER = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_NOT_PLAIN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what the careful way names, or takes after all
_WIDE = 256  # columns, from which on the order of names decides how long a row takes
_INLINE_LOOKS = 1 << 20  # at names, if each is looked for among all: 1.7 ms
# Told how many bytes of memory a picture takes, before it is decoded; what it raises ends the decoding of the body.
BeforePicture = Callable[[int], None]
_KINDS: dict[str, Any] = {"number": _NUMBER, "integer": _INTEGER, "boolean": bool, "category": str, "text": str}


class InstanceDecoder(Protocol):
    """Body bytes to tensors in the signature's order, and the number of rows.

    The event loop may ask `at_once` for bodies up to `inline_bytes`; all else is done in a thread. `pictures`: there
    may be encoded ones in a body.
    """

    inline_bytes: int
    pictures: bool

    def __call__(self, body: bytes, before: BeforePicture | None = None) -> tuple[Tensors, int]:
        """Malformed for a body that is not JSON, InvalidTensor with `errors` for values that do not fit.

        PayloadTooLarge for more rows than the endpoint queues; whatever `before` raises.
        """
        ...

    def at_once(self, body: bytes) -> tuple[Tensors, int] | None:
        """The same if it surely takes a millisecond at most; None, and nothing is decided, if it may take longer."""
        ...


def instance_decoder(
    signature: Signature, limit: RowLimit | None = None, max_megapixels: float = 50.0
) -> InstanceDecoder:
    """The decoder for a signature; Corrupt if its columns cannot be filled from instances."""
    limit = limit or RowLimit()
    if signature.task == "inference":
        return NestedDecoder(signature, limit)
    if any(column.type == "image" for column in signature.columns):
        if len(signature.columns) != 1 or signature.image is None or len(signature.inputs) != 1:
            raise Corrupt("signature.json: an image column must be the only one, with `image` and one input")
        return _Images(signature, limit, max_megapixels)
    return _Table(signature, limit)


class _Table:
    """Rows of named values. A msgspec struct per model holds the columns in tensor order, each tensor a slice of it.

    A body has no more values than commas, but for one; and what the careful way takes nothing tells beforehand.
    """

    inline_bytes = INLINE_JSON_BYTES
    pictures = False

    def __init__(self, signature: Signature, limit: RowLimit) -> None:
        self._careful = CarefulTable(signature, limit)
        self._limit = limit
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
        row = _row(ordered)
        self._decode = msgspec.json.Decoder(body_of(row)).decode
        self._decode_row = msgspec.json.Decoder(row).decode
        self._texts = [at for at, column in enumerate(ordered) if column.type in TEXTS]
        self._width = max(1, len(ordered))
        values = INLINE_VALUES // 2 if self._texts else INLINE_VALUES
        # One row is in any case: no thread goes on while it is decoded, wherever that is.
        self._inline_values = max(self._width, min(values, _INLINE_LOOKS // self._width))

    def __call__(self, body: bytes, before: BeforePicture | None = None) -> tuple[Tensors, int]:  # noqa: ARG002 - as for pictures
        try:
            instances = self._decode(body).instances if self._width < _WIDE else self._one_by_one(body)
        except _NOT_PLAIN as error:
            return self._careful(body, error)
        return self._tensors(instances)

    def at_once(self, body: bytes) -> tuple[Tensors, int] | None:
        if len(body) > SURE_JSON_BYTES and body.count(b",") >= self._inline_values:
            return None
        try:
            instances = self._decode(body).instances
        except _NOT_PLAIN as error:
            return self._careful(body, error) if len(body) <= SURE_JSON_BYTES else None
        return self._tensors(instances)

    def _one_by_one(self, body: bytes) -> list[Any]:
        """The instances of a wide table, in steps between which other threads go on.

        msgspec looks for a name through all fields from that of the last name on: a row in another order than the
        model's takes columns x columns, and one that repeats a name any time. DecodeError for the latter.
        """
        rows = RAW_ROWS.decode(body).instances
        self._limit.check(len(rows))
        most = 4 * self._width  # quotes around names and texts; what has more may be right, too, by its escapes
        if any(bytes(row).count(b'"') > most for row in rows):
            raise msgspec.DecodeError("names are repeated")
        return [self._decode_row(row) for row in rows]

    def _tensors(self, instances: list[Any]) -> tuple[Tensors, int]:
        self._limit.check(len(instances))
        rows = [msgspec.structs.astuple(instance) for instance in instances]
        if len(self._slices) == 1 and not self._texts:
            return (np.array(rows, self._slices[0][1]),), len(rows)
        cells = [list(row) for row in rows]
        for row in cells:
            for at in self._texts:
                row[at] = (row[at] or "").strip()  # as at ingest, so that " Oslo" is what training saw
        return tuple(np.array([row[part] for row in cells], dtype) for part, dtype in self._slices), len(rows)


def _row(columns: list[Column]) -> Any:  # noqa: ANN401 - a type made at run time
    """A struct; its fields are f0, f1, … because a column's name may be any text."""
    fields = [(f"f{at}", _KINDS[c.type] | None if c.nullable else _KINDS[c.type]) for at, c in enumerate(columns)]
    names = {f"f{at}": column.name for at, column in enumerate(columns)}
    return msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)


class _Images:
    """Pictures as base64 text or nested lists of 0-255, bare or under the column's name."""

    inline_bytes = 0  # a few bytes of PNG may be many megapixels
    pictures = True

    def __init__(self, signature: Signature, limit: RowLimit, max_megapixels: float) -> None:
        if signature.image is None:  # the factory has checked; this tells the type checker
            raise Corrupt("signature.json: no `image`")
        self._format = signature.image
        self._column = signature.columns[0].name
        self._shape = signature.inputs[0].shape[1:]
        self._max_megapixels = max_megapixels
        self._careful = CarefulImages(signature, limit, max_megapixels)
        self._limit = limit
        self._local = threading.local()  # a parser may not be shared, and large bodies are decoded in threads

    def __call__(self, body: bytes, before: BeforePicture | None = None) -> tuple[Tensors, int]:
        parser = getattr(self._local, "parser", None) or simdjson.Parser()
        self._local.parser = None
        try:
            images = self._read(parser.parse(body), before)
        except (ValueError, TypeError, LookupError, RuntimeError, UnicodeDecodeError, InvalidTensor) as error:
            refused = error.with_traceback(None)  # which holds what was parsed, a dozen times the body
        else:
            if len(body) <= KEPT_BYTES:
                self._local.parser = parser  # after an error it may still be referred to, and is dropped
            return (np.stack(images),), len(images)
        del parser
        return self._careful(body, refused, before)

    def at_once(self, body: bytes) -> tuple[Tensors, int] | None:  # noqa: ARG002 - as the others
        return None

    def _read(self, document: Any, before: BeforePicture | None) -> list[Array]:  # noqa: ANN401 - a simdjson object
        if list(document.keys()) != ["instances"]:
            raise ValueError("unknown keys")
        instances = document["instances"]
        if not isinstance(instances, simdjson.Array) or not len(instances):
            raise ValueError("no instances")
        self._limit.check(len(instances))
        before = beside_all(before, len(instances), self._shape)
        return [self._picture(instance, before) for instance in instances]

    def _picture(self, instance: Any, before: BeforePicture | None) -> Array:  # noqa: ANN401 - a simdjson value or a text
        if isinstance(instance, simdjson.Object):
            if list(instance.keys()) != [self._column]:
                raise ValueError("unknown column")
            instance = instance[self._column]
        if isinstance(instance, str):
            from app.serving.images import decode_image  # noqa: PLC0415 - Pillow takes 2 MiB, for models of pictures alone

            raw = from_base64(instance)
            return decode_image(raw, self._format, max_megapixels=self._max_megapixels, before=before)
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
