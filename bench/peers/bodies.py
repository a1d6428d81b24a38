"""The rows of a model as the bodies that the servers want, and the numbers in what they answer."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench.peers.servers.common import INPUTS, OUTPUTS

Row = dict[str, "np.ndarray[Any, np.dtype[Any]]"]  # input name → values, without the batch axis
Body = tuple[int, bytes]  # length of the inference header, 0 if there is none, and the bytes
Form = Callable[[Row], Body]
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


def _text(document: Any) -> bytes:
    """Compact JSON; a float32 is the shortest decimal that gives it back."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def plain(row: Row) -> Body:
    """Input name → nested lists of one row."""
    return 0, _text(row)


def batch_of_one(row: Row) -> Body:
    """Input name → nested lists of a batch that has one row."""
    return 0, _text({name: values[None] for name, values in row.items()})


def v2(row: Row) -> Body:
    """Open Inference Protocol, flat lists."""
    return 0, _text({"inputs": [{**_head(name, values), "data": values.ravel()} for name, values in row.items()]})


def v2_binary(row: Row) -> Body:
    """Open Inference Protocol, binary tensors both ways."""
    inputs = [
        {**_head(name, values), "parameters": {"binary_data_size": values.nbytes}} for name, values in row.items()
    ]
    header = _text({"inputs": inputs, "outputs": [{"name": "y", "parameters": {"binary_data": True}}]})
    return len(header), header + b"".join(values.tobytes() for values in row.values())


def _head(name: str, values: "np.ndarray[Any, np.dtype[Any]]") -> dict[str, Any]:
    return {"name": name, "shape": [1, *values.shape], "datatype": _DATATYPES[str(values.dtype)]}


def numbers(model: str, answer: bytes, header_length: int | None) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """The row of `y` in an answer: raw behind the header, or the last numbers of a JSON document of any form."""
    if header_length:
        return np.frombuffer(answer[header_length:], np.float32)
    return np.array(list(_leaves(json.loads(answer)))[-OUTPUTS[model] :], np.float32)


def _leaves(document: Any) -> Iterator[float]:
    if isinstance(document, dict | list):
        for item in document.values() if isinstance(document, dict) else document:
            yield from _leaves(item)
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield document


@dataclass(frozen=True)
class Samples:
    """Rows of one model, and what ONNX Runtime answers to each."""

    model: str
    rows: list[Row]
    expected: dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]  # by precision

    @classmethod
    def read(cls, models: Path, model: str) -> "Samples":
        """From the file that `bench.peers.models` made."""
        with np.load(models / f"{model}.npz") as file:
            arrays = {name: file[name] for name in INPUTS[model]}
            expected = {name: file[name] for name in ("fp32", "int8") if name in file}
        rows = [dict(zip(arrays, values, strict=True)) for values in zip(*arrays.values(), strict=True)]
        return cls(model, rows, expected)

    def batch(self, count: int) -> Row:
        """The first rows, repeated as needed, as one batch."""
        chosen = [self.rows[at % len(self.rows)] for at in range(count)]
        return {name: np.stack([row[name] for row in chosen]) for name in self.rows[0]}
