"""What a developer writes first: FastAPI, a pydantic model, a sync handler, `session.run` per request."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, create_model

FOLDER = Path(os.environ["BENCH_FOLDER"]) / "table"
SIGNATURE = json.loads((FOLDER / "signature.json").read_text())
COLUMNS = [c["name"] for c in sorted(SIGNATURE["columns"], key=lambda column: column["index"])]
CLASSES = SIGNATURE["classes"]
session = ort.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])


class Strict(BaseModel):
    """Unknown columns are an error, as they are for the product."""

    model_config = ConfigDict(extra="forbid")


Row = create_model("Row", __base__=Strict, **dict.fromkeys(COLUMNS, (float, ...)))  # type: ignore[call-overload]


class Request(BaseModel):
    """The same body as the product's."""

    instances: list[Row]  # type: ignore[valid-type]


class Prediction(BaseModel):
    """One row's answer."""

    label: str
    probabilities: dict[str, float]


class Answer(BaseModel):
    """All rows' answers."""

    predictions: list[Prediction]


app = FastAPI()


@app.post("/predict")
def predict(request: Request) -> Answer:
    rows = np.array([[getattr(row, name) for name in COLUMNS] for row in request.instances], np.float32)
    (probabilities,) = session.run(["probabilities"], {"numeric": rows})
    return Answer(
        predictions=[
            Prediction(label=CLASSES[int(row.argmax())], probabilities=dict(zip(CLASSES, row.tolist(), strict=True)))
            for row in probabilities
        ]
    )
