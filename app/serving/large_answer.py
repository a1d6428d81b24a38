"""Answers of the Open Inference Protocol that are large: written in pieces, rather than in copies of the whole."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson

from app.serving.answer_limit import too_large_answer
from app.serving.effort import Wanted
from app.serving.oip import Encoded, OipCodec, no_json_form
from app.serving.tensors import DTYPES, NO_JSON, to_raw
from app.serving.types import Array, Pieces, Tensors

_AT_ONCE = 64 * 1024  # elements; orjson lets no other thread go on before it is done, which takes 5 ms for so many
_JOINED = 1 << 20  # bytes of an answer that is sent as one after all


def encode_large(
    codec: OipCodec, outputs: Tensors, wanted: Sequence[Wanted], version: str, request_id: str | None
) -> Encoded:
    """As `codec.encode`; binary tensors are not copied. PayloadTooLarge if the answer is larger than it may be."""
    codec.limit.check(outputs, wanted)
    header, blobs = _Bounded(codec.limit.most), _Bounded(codec.limit.most)
    about = {"model_name": codec.endpoint, "model_version": version}
    if request_id is not None:
        about["id"] = request_id
    header.add(orjson.dumps(about)[:-1] + b',"outputs":[')
    for place, choice in enumerate(wanted):
        tensor, array = codec.output(choice, outputs)
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        comma = b"," if place else b""
        if choice.binary:
            raw = _raw(array, tensor.datatype)
            blobs.add(raw)
            header.add(comma + orjson.dumps(entry | {"parameters": {"binary_data_size": len(raw)}}))
        elif tensor.datatype in NO_JSON:
            raise no_json_form(tensor)
        else:
            header.add(comma + orjson.dumps(entry)[:-1] + b',"data":[')
            for part in _json_parts(array.reshape(-1)):
                header.add(part)
            header.add(b"]}")
    header.add(b"]}")
    pieces = header.pieces + blobs.pieces
    joined = header.size + blobs.size <= _JOINED
    return Encoded(b"".join(pieces) if joined else pieces, header.size if blobs.size else None)


class _Bounded:
    """Pieces of `most` bytes together."""

    def __init__(self, most: float) -> None:
        self.pieces = Pieces()
        self.size = 0
        self._most = most

    def add(self, piece: bytes | memoryview) -> None:
        """PayloadTooLarge if they become more."""
        self.size += len(piece)
        if self.size > self._most:
            raise too_large_answer(self.size, self._most)
        self.pieces.append(piece)


def _raw(array: Array, datatype: str) -> bytes | memoryview:
    """As `to_raw`, where the array's own memory has these bytes: that."""
    if datatype in {"BYTES", "BF16"}:
        return to_raw(array, datatype)
    return np.ascontiguousarray(array, DTYPES[datatype]).reshape(-1).view(np.uint8).data


def _json_parts(flat: Array) -> Iterator[bytes]:
    """The elements, without the brackets around them."""
    for at in range(0, flat.size, _AT_ONCE):
        part = flat[at : at + _AT_ONCE]
        data = part.tolist() if flat.dtype == object else np.ascontiguousarray(part)
        text = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
        yield text[1:-1] if at == 0 else b"," + text[1:-1]
