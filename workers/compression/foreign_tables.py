"""Tables as imported models take them: their tensors as boosted trees read them."""

import numpy as np

from app.core.signature import Signature, Task, Tensor
from workers.compression.foreign import RANK, is_told, kind_of
from workers.evaluation.answers import Answering
from workers.learning import Array, Inputs

_NUMBERS = frozenset({"FP16", "FP32", "FP64", "BOOL", "UINT8", "INT32", "INT64"})


def is_table(signature: Signature, answering: Answering, task: Task) -> bool:
    """Whether rows are numbers and texts, and everything that is answered follows from classes or values."""
    read = all(
        1 <= len(tensor.shape) <= RANK and tensor.datatype in _NUMBERS | {"BYTES"} for tensor in signature.inputs
    )
    return read and is_told(signature, answering, task)


def table_of(signature: Signature, inputs: Inputs) -> dict[str, Array]:
    """`numeric` FP32 [N, n] and `categorical` str [N, m], as a table that is learnt from here has them."""
    found: dict[str, list[Array]] = {}
    for tensor in signature.inputs:
        rows = inputs[tensor.name].reshape(len(inputs[tensor.name]), -1)
        texts = tensor.datatype == "BYTES"
        found.setdefault(kind_of(tensor), []).append(rows.astype(np.str_ if texts else np.float32))
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


def table_signature(table: Inputs, task: Task, classes: int) -> Signature:
    """Of a model that was trained here on such a table."""
    inputs = tuple(
        Tensor(name, "BYTES" if name == "categorical" else "FP32", (-1, rows.shape[1])) for name, rows in table.items()
    )
    answer = Tensor("value", "FP32", (-1,)) if task == "regression" else Tensor("probabilities", "FP32", (-1, classes))
    return Signature(task, inputs, (answer,), (), tuple(map(str, range(classes))))
