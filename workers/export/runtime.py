"""ONNX Runtime as the jobs use it: one session, fixed threads, no waiting threads that spin."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Inputs = Mapping[str, npt.NDArray[Any]]
_ERRORS_ONLY = 3


def open_session(model: bytes, threads: int) -> ort.InferenceSession:
    """A CPU session over a serialised model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def rows_of(inputs: Inputs) -> int:
    """Rows of a batch; every tensor has the same number."""
    return len(next(iter(inputs.values())))


def take(inputs: Inputs, rows: npt.NDArray[np.int64] | slice) -> dict[str, npt.NDArray[Any]]:
    """The chosen rows of every tensor."""
    return {name: np.ascontiguousarray(value[rows]) for name, value in inputs.items()}


def predict(session: ort.InferenceSession, inputs: Inputs, batch: int = 1024) -> npt.NDArray[np.float32]:
    """The first output for all rows, run in batches: FP32 [N, K] or [N]."""
    parts = [
        session.run(None, take(inputs, slice(start, start + batch)))[0] for start in range(0, rows_of(inputs), batch)
    ]
    return np.concatenate(parts)
