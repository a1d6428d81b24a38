"""Naive Bayes where a class has no training row."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import polars as pl

from workers.jobs import train


def test_a_class_without_a_training_row_is_never_told_however_far_out_a_row_is(make_job: Callable[..., Any]):
    """Two narrow classes make a row between them as unlikely as a density can be."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1e-3, 60), rng.normal(1, 1e-3, 60), rng.normal(1, 1e-3, 10)])
    labels = ["a"] * 60 + ["b"] * 60 + ["c"] * 10
    parts = [("train", "val", "test")[at % 3] if label != "c" else "test" for at, label in enumerate(labels)]
    frame = pl.DataFrame({"x": x, "part": parts, "target": labels})
    job = make_job(frame, family="naive_bayes", split={"column": "part"})
    train.run(job)
    session = ort.InferenceSession(job.output / "model.onnx", providers=["CPUExecutionProvider"])
    told = session.run(None, {"numeric": np.asarray([[0.5], [0.0], [900.0], [-900.0]], np.float32)})[0]
    assert told[:, 2].max() == 0
    assert np.abs(told.sum(axis=1) - 1).max() < 1e-6
