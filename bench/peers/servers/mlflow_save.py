"""python mlflow_save.py FOLDER: each model as MLflow's ONNX flavour keeps it."""

import sys
from pathlib import Path

import mlflow
import numpy as np
import onnx
from common import INPUTS, model_file
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec

if __name__ == "__main__":
    for model, inputs in INPUTS.items():
        specs = [TensorSpec(np.dtype(dtype), (-1, *shape), name) for name, (dtype, shape) in inputs.items()]
        mlflow.onnx.save_model(
            onnx.load(str(model_file(model))),
            str(Path(sys.argv[1]) / model),
            signature=ModelSignature(inputs=Schema(specs)),
            onnx_execution_providers=["CPUExecutionProvider"],
        )
