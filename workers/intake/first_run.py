"""Run an imported model for the first time, on made-up rows: does it answer, the same each time, and row by row?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import ModelProto

from app.core.errors import InvalidData
from app.core.signature import Datatype, Signature
from app.serving.bfloat16 import from_bits, runner, to_bits
from app.serving.tensors import DTYPES
from workers.export.runtime import open_session
from workers.intake.signature import Axes, may_batch, read_inputs, read_outputs, tensor

Arrays = dict[str, npt.NDArray[Any]]
ROWS = 4  # of the golden input
_SIZES = (8, 32, 1, 64, 224)  # tried for axes that are neither the batch nor fixed
_RTOL, _ATOL = 1e-3, 1e-4  # a batch is summed in another order than a row
_MOST_ELEMENTS = 1 << 26  # of one made-up input


@dataclass(frozen=True, slots=True)
class FirstRun:
    """What was learned: the signature, and inputs with the answers that serving must give again."""

    signature: Signature
    inputs: Arrays
    outputs: Arrays


def first_run(path: Path, model: ModelProto, threads: int) -> FirstRun:
    """Open and run a checked model.

    Raises:
        InvalidData: it cannot be opened or run, gives something other than tensors, or another answer each time.
    """
    inputs, declared = read_inputs(model), read_outputs(model)
    session = open_file(path, threads)
    rows = ROWS if may_batch(inputs.values()) else 1
    made, answers = _run_somehow(session, inputs, rows)
    batched = rows > 1 and _row_by_row(session, made, answers)
    again = _run(session, made)
    if not all(_same(answers[name], again[name]) for name in answers):
        raise InvalidData.at("model", msg="the model answers the same input differently each time; it cannot be proven")
    outputs = [
        tensor(name, datatype, _output_axes(axes, answers[name], inputs, batched=batched))
        for name, (datatype, axes) in declared.items()
    ]
    signature = Signature(
        task="inference",
        inputs=tuple(tensor(name, datatype, axes) for name, (datatype, axes) in inputs.items()),
        outputs=tuple(outputs),
        columns=(),
        batched=batched,
    )
    return FirstRun(signature, made, answers)


def open_file(path: Path, threads: int) -> ort.InferenceSession:
    """A CPU session over a file and the external data beside it. InvalidData if ONNX Runtime refuses it."""
    try:
        return open_session(str(path), threads)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it raises, the model is what caused it
        words = _words(error).replace(str(path), path.name)
        raise InvalidData.at("model", msg=f"ONNX Runtime cannot load it: {words}") from None


def _run_somehow(
    session: ort.InferenceSession, inputs: Mapping[str, tuple[Datatype, Axes]], rows: int
) -> tuple[Arrays, Arrays]:
    """Made-up inputs that the model takes, and its answers. InvalidData with the first refusal if it takes none."""
    free = any(isinstance(size, str) for _, axes in inputs.values() for size in (axes[1:] if rows > 1 else axes))
    first: InvalidData | None = None
    for size in _SIZES if free else (1,):
        made = {name: _make(datatype, axes, rows, size) for name, (datatype, axes) in inputs.items()}
        try:
            return made, _run(session, made)
        except InvalidData as error:
            first = first or error
    raise first or InvalidData.at("model", msg="the model was not run")


def _make(datatype: Datatype, axes: Axes, rows: int, size: int) -> npt.NDArray[Any]:
    """An array of small values: noise, zeros and ones, or letters."""
    shape = [s if isinstance(s, int) else (rows if at == 0 and rows > 1 else size) for at, s in enumerate(axes)]
    if np.prod(shape, dtype=float) > _MOST_ELEMENTS:
        raise InvalidData.at("model", msg=f"an input of shape {shape} is larger than any request may be")
    rng = np.random.default_rng(0)
    if datatype == "BYTES":
        return np.array(rng.choice(["a", "b"], shape), np.object_).reshape(shape)
    if datatype == "BF16":
        return from_bits(to_bits(rng.standard_normal(shape).astype(np.float32)))
    dtype = DTYPES[datatype]
    return (rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)).astype(dtype)


def _run(session: ort.InferenceSession, made: Arrays) -> Arrays:
    try:
        answers = runner(session)([output.name for output in session.get_outputs()], made)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the same
        raise InvalidData.at("model", msg=f"the model does not run: {_words(error)}") from None
    return dict(zip([output.name for output in session.get_outputs()], answers, strict=True))


def _row_by_row(session: ort.InferenceSession, made: Arrays, answers: Arrays) -> bool:
    """True if a batch is answered as its rows are: only then may requests of strangers share a run."""
    if any(answer.ndim == 0 or len(answer) != ROWS for answer in answers.values()):
        return False
    for row in range(ROWS):
        try:
            single = _run(session, {name: array[row : row + 1] for name, array in made.items()})
        except InvalidData:
            return False
        if not all(_same(answers[name][row : row + 1], single[name]) for name in answers):
            return False
    return True


def _same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=_RTOL, atol=_ATOL, equal_nan=True))


def _output_axes(
    declared: Axes | None, answer: npt.NDArray[Any], inputs: Mapping[str, tuple[Datatype, Axes]], *, batched: bool
) -> Axes:
    """The sizes seen, if nothing but the batch can vary; else those declared; else variable."""
    axes: Axes = answer.shape
    if any(isinstance(size, str) for _, given in inputs.values() for size in (given[1:] if batched else given)):
        axes = declared if declared is not None and len(declared) == answer.ndim else ("",) * answer.ndim
    return ("", *axes[1:]) if batched else axes


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
