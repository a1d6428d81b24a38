"""How large the answer to one request may be, which is asked before its run where that can be known."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from app.core.errors import PayloadTooLarge
from app.core.signature import Signature
from app.serving.effort import Wanted
from app.serving.tensors import DTYPES
from app.serving.types import Array, Tensors

_TEXT_BYTES = 4  # of a text, beside its characters


def too_large_answer(size: float, most: float) -> PayloadTooLarge:
    """The error of a request whose answer has `size` bytes, or would have."""
    return PayloadTooLarge(
        f"outputs: the answer would have {math.ceil(size / (1 << 20))} MiB or more, of {most / (1 << 20):g} allowed "
        "(AIMASS_LIMIT_ANSWER_MB): send fewer rows per request, or ask only for the outputs that are needed, as binary "
        "data"
    )


class AnswerLimit:
    """Answers of more than `most` bytes are refused; those refused before their run are counted in `rejected`.

    Whatever has up to `sure_rows` rows need not be asked about before.
    """

    def __init__(self, signature: Signature, most: float = math.inf, rejected: Counter[str] | None = None) -> None:
        self.most = most
        self._rejected = Counter[str]() if rejected is None else rejected
        self._row_bytes: list[int] = []  # of each output; 0: only the outputs themselves can tell
        for tensor in signature.outputs:
            shape = tensor.shape[1:] if signature.batched else tensor.shape
            known = -1 not in shape and tensor.datatype != "BYTES"
            self._row_bytes.append(math.prod(shape) * DTYPES[tensor.datatype].itemsize if known else 0)
        self.sure_rows = most // sum(self._row_bytes) if any(self._row_bytes) else math.inf

    def check_rows(self, rows: int, wanted: Iterable[Wanted]) -> None:
        """PayloadTooLarge if so many rows surely have too large an answer."""
        size = rows * sum(self._row_bytes[choice.at] for choice in wanted if not choice.classes)
        if size > self.most:
            self._rejected["too_large"] += 1
            raise too_large_answer(size, self.most)

    def check(self, outputs: Tensors, wanted: Sequence[Wanted]) -> None:
        """PayloadTooLarge if these outputs are too large an answer; may take long."""
        size = sum(_bytes(outputs[choice.at]) for choice in wanted if not choice.classes)
        if size > self.most:
            raise too_large_answer(size, self.most)


def _bytes(array: Array) -> int:
    if array.dtype != object:
        return array.nbytes
    return _TEXT_BYTES * array.size + sum(map(len, array.ravel().tolist()))
