"""What every server's script shares: the models' inputs, and a session with ONNX Runtime's default options.

This folder is on the path of environments that have numpy, onnxruntime and one server, and nothing of this repository.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

# model → input → (numpy type, shape of a row)
INPUTS = {
    "mlp": {"x": (np.float32, (30,))},
    "cnn": {"x": (np.float32, (3, 64, 64))},
    "encoder": {"input_ids": (np.int64, (64,)), "attention_mask": (np.int64, (64,))},
}
OUTPUTS = {"mlp": 2, "cnn": 200, "encoder": 384}  # columns of `y`, float32
MAX_BATCH, MAX_DELAY_S = 32, 0.002  # of the peers that batch
_ERRORS_ONLY = 3


def model_file(model: str) -> Path:
    """The ONNX file of a model."""
    return Path(os.environ["BENCH_MODELS"]) / f"{model}.onnx"


def session(model: str) -> ort.InferenceSession:
    """A session as a developer opens it who sets no option."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    return ort.InferenceSession(str(model_file(model)), options, providers=["CPUExecutionProvider"])


def feed(model: str, rows: list[dict[str, list]]) -> dict[str, np.ndarray]:
    """Rows of nested lists, by input name, as the session's batch."""
    return {name: np.array([row[name] for row in rows], dtype) for name, (dtype, _) in INPUTS[model].items()}
