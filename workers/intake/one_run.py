"""One run of an imported model, which may refuse it, and whether two answers are the same."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.core.errors import InvalidData
from app.serving.bfloat16 import runner

Arrays = dict[str, npt.NDArray[Any]]
_RTOL, _ATOL = 1e-3, 1e-4  # a batch is summed in another order than a row
_FATAL = 4  # ONNX Runtime's level: a refusal is an answer here, no line for the log


def run(session: ort.InferenceSession, made: Arrays, options: ort.RunOptions | None = None) -> Arrays:
    """The answers by name. InvalidData if the model does not run."""
    names = [output.name for output in session.get_outputs()]
    try:
        answers = runner(session)(names, made, options)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it raises, the model is what caused it
        raise InvalidData.at("model", msg=f"the model does not run: {words(error)}") from None
    return dict(zip(names, answers, strict=True))


@contextmanager
def ended_after(seconds: float) -> Iterator[ort.RunOptions]:
    """Options of a run that is told to end after so long; `terminate` says whether it was."""
    options = ort.RunOptions()
    options.log_severity_level = _FATAL
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()


def same(one: npt.NDArray[Any], other: npt.NDArray[Any], scale: float = 1.0) -> bool:
    """True if the answers differ by no more than the order of summing does; `scale` is of the numbers summed."""
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=_RTOL, atol=_ATOL * scale, equal_nan=True))


def words(error: Exception) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split())[:500]
