"""What of a request the event loop may do itself, and what is left to a thread, since all others would wait for it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from app.core.signature import Signature
from app.serving.types import Tensors

# Numbers that are written as JSON on the event loop: a third of a millisecond.
_ELEMENTS = 4096
# What takes as long as to write one number as JSON does.
_RAW_BYTES = 512  # copied
_TEXT_BYTES = 32  # of texts, beside what each of them costs
_TEXTS = 4  # one text, or one class to be named, costs as much as so many numbers
# Raw bytes that are decoded on the event loop, of datatypes whose bytes are not the array: 2 ms of empty texts at most.
_INLINE_RAW = {"BYTES": 16 * 1024, "BF16": 1024 * 1024, "BOOL": 1024 * 1024}


class Wanted(NamedTuple):
    """An output to answer: its place in the signature, as binary data or not, as how many classes (0: as it is)."""

    at: int
    binary: bool
    classes: int = 0


def inline_raw_bytes(signature: Signature) -> float:
    """How many bytes of raw tensors are decoded so quickly that the event loop may do it."""
    return min((_INLINE_RAW.get(tensor.datatype, math.inf) for tensor in signature.inputs), default=math.inf)


def inline_rows(signature: Signature) -> int:
    """Rows whose outputs are small in any form; 0 where only the outputs themselves can tell."""
    shapes = [tensor.shape[1:] if signature.batched else tensor.shape for tensor in signature.outputs]
    if any(-1 in shape for shape in shapes) or any(tensor.datatype == "BYTES" for tensor in signature.outputs):
        return 0
    return _ELEMENTS // max(1, _TEXTS * sum(math.prod(shape) for shape in shapes))


def are_small(outputs: Tensors, wanted: Sequence[Wanted], *, raw: bool = False) -> bool:
    """True if the event loop may write these outputs; `raw`: all of them are answered as binary data."""
    work = 0
    for at, binary, classes in wanted:
        array = outputs[at]
        size = array.size
        if classes:
            rows = len(array) if array.ndim else 1
            work += size + _TEXTS * min(size, rows * classes)
        elif array.dtype == object:
            work += _TEXTS * size
            if work <= _ELEMENTS:  # only then is it quick to ask how long they are
                work += sum(map(len, array.ravel().tolist())) // _TEXT_BYTES
        else:
            work += array.nbytes // _RAW_BYTES if raw or binary else size
    return work <= _ELEMENTS
