"""ONNX Runtime as the jobs use it: one session, fixed threads, no waiting threads that spin."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.serving.bfloat16 import runner
from app.serving.fusions import leave_slow_fusions_out
from app.serving.provider import Provider
from workers.export.bounds import LOWER, UPPER, VALUE
from workers.learning import Inputs, rows_of, take

_ERRORS_ONLY = 3
Session = ort.InferenceSession


def open_session(model: bytes | str, threads: int, device: str = "cpu") -> ort.InferenceSession:
    """A session over a serialised model, or over the file at a path and the external data beside it.

    On `cuda:N` it has the options of a gateway there; see `workers.evaluation.device` for whether it can run there.
    """
    if device != "cpu":
        provider = Provider.on_gpu(device)
        return ort.InferenceSession(model, provider.session_options(threads), providers=provider.chain)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    leave_slow_fusions_out(options)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def predict(
    session: ort.InferenceSession, inputs: Inputs, batch: int = 1024, output: str | None = None
) -> npt.NDArray[Any]:
    """One output, the first if none is named, for all rows, run in batches: [N, …].

    Of a regressor with prediction intervals, if none is named, value, lower and upper [N, 3].
    """
    run, there = runner(session), [found.name for found in session.get_outputs()]
    names = [output] if output else there if there == [VALUE, LOWER, UPPER] else there[:1]
    parts = [run(names, take(inputs, slice(start, start + batch))) for start in range(0, rows_of(inputs), batch)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
