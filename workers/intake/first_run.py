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
from workers.export.runtime import open_session
from workers.intake.independence import dependence
from workers.intake.one_run import Arrays, run, same, words
from workers.intake.rows import values
from workers.intake.signature import Axes, check_rank, may_batch, read_inputs, read_outputs, tensor

ROWS = 4  # of the golden input
_SIZES = (8, 32, 1, 64, 224)  # tried for axes that are neither the batch nor fixed
_NO_BATCH_AXIS = "the first axes of its inputs are not one axis of any size"
_MOST_ELEMENTS = 1 << 26  # of one made-up input


@dataclass(frozen=True, slots=True)
class FirstRun:
    """What was learned: the signature, and inputs with the answers that serving must give again."""

    signature: Signature
    inputs: Arrays
    outputs: Arrays
    why_not_batched: str = ""


def first_run(path: Path, model: ModelProto, threads: int, *, batched: bool | None = None) -> FirstRun:
    """Open and run a checked model.

    Args:
        path: its file.
        model: what that holds.
        threads: for a run.
        batched: what the sender says: False never batches its rows, True refuses a model whose rows cannot be batched.

    Raises:
        InvalidData: it cannot be opened or run, gives something other than tensors, or another answer each time.
    """
    inputs, declared = read_inputs(model), read_outputs(model)
    kinds = {datatype for datatype, _ in inputs.values()}
    if "BYTES" in kinds and "BF16" in kinds | {datatype for datatype, _ in declared.values()}:
        raise InvalidData.at("model", msg="ONNX Runtime takes no strings beside bfloat16; add a Cast to float32")
    session = open_file(path, threads)
    for output in session.get_outputs():
        check_rank("output", output.name, len(output.shape or ()))  # as inferred: NumPy could not hold the answer
    rows = ROWS if may_batch(inputs.values()) else 1
    made, answers = _run_somehow(session, inputs, rows)
    for name, answer in answers.items():
        check_rank("output", name, answer.ndim)  # a graph need not declare it
    again = run(session, made)
    if not all(same(answers[name], again[name]) for name in answers):
        raise InvalidData.at("model", msg="the model answers the same input differently each time; it cannot be proven")
    why_not = _why_not_batched(session, inputs, made, answers, batched=batched) if rows > 1 else _NO_BATCH_AXIS
    if batched and why_not:
        raise InvalidData.at(
            "metadata", "batched", msg=f"true cannot be held to: {why_not}; leave it out, or say false"
        )
    signature = _signature(inputs, declared, answers, batched=not why_not)
    return FirstRun(signature, made, answers, why_not)


def _signature(
    inputs: Mapping[str, tuple[Datatype, Axes]],
    declared: Mapping[str, tuple[Datatype, Axes | None]],
    answers: Arrays,
    *,
    batched: bool,
) -> Signature:
    outputs = [
        tensor(name, datatype, _output_axes(axes, answers[name], inputs, batched=batched))
        for name, (datatype, axes) in declared.items()
    ]
    return Signature(
        task="inference",
        inputs=tuple(tensor(name, datatype, axes) for name, (datatype, axes) in inputs.items()),
        outputs=tuple(outputs),
        columns=(),
        batched=batched,
    )


def open_file(path: Path, threads: int) -> ort.InferenceSession:
    """A CPU session over a file and the external data beside it. InvalidData if ONNX Runtime refuses it."""
    try:
        return open_session(str(path), threads)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it raises, the model is what caused it
        why = words(error).replace(str(path), path.name)
        raise InvalidData.at("model", msg=f"ONNX Runtime cannot load it: {why}") from None


def _why_not_batched(
    session: ort.InferenceSession,
    inputs: Mapping[str, tuple[Datatype, Axes]],
    made: Arrays,
    answers: Arrays,
    *,
    batched: bool | None,
) -> str:
    if batched is False:
        return "the import's metadata says so"
    return dependence(session, {name: datatype for name, (datatype, _) in inputs.items()}, made, answers)


def _run_somehow(
    session: ort.InferenceSession, inputs: Mapping[str, tuple[Datatype, Axes]], rows: int
) -> tuple[Arrays, Arrays]:
    """Made-up inputs that the model takes, and its answers. InvalidData with the first refusal if it takes none."""
    free = any(isinstance(size, str) for _, axes in inputs.values() for size in (axes[1:] if rows > 1 else axes))
    first: InvalidData | None = None
    for size in _SIZES if free else (1,):
        made = {name: _make(datatype, axes, rows, size) for name, (datatype, axes) in inputs.items()}
        try:
            return made, run(session, made)
        except InvalidData as error:
            first = first or error
    raise first or InvalidData.at("model", msg="the model was not run")


def _make(datatype: Datatype, axes: Axes, rows: int, size: int) -> npt.NDArray[Any]:
    """An array of small values: noise, zeros and ones, or letters."""
    shape = [s if isinstance(s, int) else (rows if at == 0 and rows > 1 else size) for at, s in enumerate(axes)]
    if np.prod(shape, dtype=float) > _MOST_ELEMENTS:
        raise InvalidData.at("model", msg=f"an input of shape {shape} is larger than any request may be")
    return values(datatype, shape, np.random.default_rng(0))


def _output_axes(
    declared: Axes | None, answer: npt.NDArray[Any], inputs: Mapping[str, tuple[Datatype, Axes]], *, batched: bool
) -> Axes:
    """The sizes seen, if nothing but the batch can vary; else those declared; else variable."""
    axes: Axes = answer.shape
    if any(isinstance(size, str) for _, given in inputs.values() for size in (given[1:] if batched else given)):
        axes = declared if declared is not None and len(declared) == answer.ndim else ("",) * answer.ndim
    return ("", *axes[1:]) if batched else axes
