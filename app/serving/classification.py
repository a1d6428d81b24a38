"""The classification extension: the likeliest classes of an output as texts, for clients that show them to people."""

import numpy as np

from app.core.errors import InvalidTensor
from app.core.signature import Signature, Tensor
from app.serving.types import Array


def classified(tensor: Tensor, array: Array, count: int, signature: Signature) -> tuple[Tensor, Array]:
    """BYTES [rows, k] (or [k] for a model that does not batch): `value:index` or `value:index:label`, best first.

    InvalidTensor if the output holds no numbers.
    """
    if array.dtype.kind not in "fiu":
        raise InvalidTensor.at(
            "outputs",
            tensor.name,
            msg=f"{tensor.datatype} has no order that classes could be ranked by",
            type="datatype",
        )
    rows = array.reshape(len(array), -1) if signature.batched else array.reshape(1, -1)
    labels = signature.classes if len(signature.classes) == rows.shape[1] else ()
    order = _best_first(rows)[:, :count]
    texts = np.empty(order.size, object)  # filled one by one: while numpy reads lists, no other thread can go on
    for place, (row, at) in enumerate((row, at) for row, best in zip(rows, order, strict=True) for at in best):
        texts[place] = _text(row[at], at, labels)
    shaped = texts.reshape(order.shape) if signature.batched else texts
    return Tensor(tensor.name, "BYTES", shaped.shape), shaped


def _best_first(rows: Array) -> Array:
    """Places by value, the first of equals first; NaN last."""
    if rows.dtype.kind == "f":
        return np.argsort(-rows.astype(np.float64), axis=1, kind="stable")
    # Large integers are not told apart as floats, and some have no negative: read from the other end instead.
    order: Array = rows.shape[1] - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    return order


def _text(value: np.generic, at: np.intp, labels: tuple[str, ...]) -> str:
    number = f"{float(value):f}" if value.dtype.kind == "f" else str(value)
    return f"{number}:{at}" + (f":{labels[at]}" if labels else "")
