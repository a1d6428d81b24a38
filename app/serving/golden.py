"""The golden input: a loaded model proves itself on the rows that its export recorded, before it may serve.

golden.json holds {"inputs": {tensor: {"datatype", "shape", "data"}}, "outputs": {…}}; null is NaN.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.core.errors import AimassError, Corrupt, ParityFailed
from app.core.signature import Signature, Tensor
from app.serving.tensors import DTYPES
from app.serving.types import Array, Run, Tensors

# Another CPU sums in another order: looser than the export's own gate, far tighter than a wrong model.
_RTOL, _ATOL = 1e-3, 1e-4


@dataclass(frozen=True, slots=True)
class Golden:
    """Recorded rows and what the exported fp32 model answered, in the signature's order."""

    inputs: Tensors
    outputs: Tensors
    batched: bool = True

    def rows(self, count: int) -> Tensors:
        """`count` rows, the recorded ones in turn; the recorded inputs themselves if the model does not batch."""
        if not self.batched:
            return self.inputs
        return tuple(np.resize(tensor, (count, *tensor.shape[1:])) for tensor in self.inputs)


def read_golden(path: Path, signature: Signature) -> Golden:
    """Read golden.json; Corrupt if it is missing, malformed or does not fit the signature."""
    try:
        raw = json.loads(path.read_text())
        golden = Golden(
            tuple(_array(raw["inputs"], tensor) for tensor in signature.inputs),
            tuple(_array(raw["outputs"], tensor) for tensor in signature.outputs),
            signature.batched,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Corrupt(f"golden.json cannot be read: {error!r}") from error
    rows = {tensor.shape[:1] for tensor in (*golden.inputs, *golden.outputs)}
    if not golden.inputs or (signature.batched and len(rows) != 1):
        raise Corrupt("golden.json: every tensor needs the same number of rows")
    return golden


def prove(golden: Golden, run: Run, *, exact: bool) -> None:
    """Run the golden rows twice: the answers must pass `check`, and be the same both times.

    ParityFailed names the output and the largest difference.
    """
    try:
        first, second = run(golden.inputs), run(golden.inputs)
    except AimassError as error:
        raise ParityFailed(f"the golden rows do not run: {error.detail}") from error
    except Exception as error:
        raise ParityFailed(f"the golden rows do not run: {error}") from error
    check(golden, first, exact=exact)
    for got, again in zip(first, second, strict=True):
        same = _close(got, again) if got.dtype.kind == "f" else np.array_equal(got, again)
        if not same:
            raise ParityFailed("the same golden rows gave two different answers")


def check(golden: Golden, outputs: Tensors, *, exact: bool) -> None:
    """Compare answers to the golden rows. `exact`: they must be the recorded ones; else finite where those are.

    A compressed variant is allowed to differ from fp32 and was measured before it was accepted, hence not `exact`.
    """
    for got, want in zip(outputs, golden.outputs, strict=True):
        if got.shape != want.shape:
            raise ParityFailed(f"golden output has shape {list(got.shape)}, recorded {list(want.shape)}")
        if got.dtype.kind != "f":
            if exact and not np.array_equal(got, want):
                raise ParityFailed("golden output differs from the recorded one")
        elif exact and not _close(got, want):
            worst = float(np.nanmax(np.abs(got.astype(np.float64) - want.astype(np.float64))))
            raise ParityFailed(f"golden output differs from the recorded one by up to {worst:.3g}")
        elif not exact and not np.isfinite(got[np.isfinite(want)]).all():
            raise ParityFailed("golden output is not finite where the recorded one is")


def _close(got: Array, want: Array) -> bool:
    return np.allclose(got, want, rtol=_RTOL, atol=_ATOL, equal_nan=True)


def _array(tensors: dict[str, Any], tensor: Tensor) -> Array:
    entry = tensors[tensor.name]
    if entry["datatype"] != tensor.datatype:
        raise ValueError(f"'{tensor.name}' is {entry['datatype']}, signature.json says {tensor.datatype}")
    return np.array(entry["data"], DTYPES[tensor.datatype]).reshape(entry["shape"])
