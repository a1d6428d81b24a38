"""What a developer writes first: FastAPI, a pydantic model, a sync handler, `session.run` per request."""

import numpy as np
from common import session
from fastapi import FastAPI
from pydantic import BaseModel


class Row(BaseModel):
    """Thirty numbers."""

    x: list[float]


class Picture(BaseModel):
    """Channels, rows, columns."""

    x: list[list[list[float]]]


class Text(BaseModel):
    """Tokens, padded, and which of them are real."""

    input_ids: list[int]
    attention_mask: list[int]


app = FastAPI()
small, large, text = session("mlp"), session("cnn"), session("encoder")


@app.get("/ready")
def ready() -> dict[str, str]:
    return {}


@app.post("/mlp")
def mlp(request: Row) -> dict[str, list[float]]:
    return {"y": small.run(None, {"x": np.array([request.x], np.float32)})[0][0].tolist()}


@app.post("/cnn")
def cnn(request: Picture) -> dict[str, list[float]]:
    return {"y": large.run(None, {"x": np.array([request.x], np.float32)})[0][0].tolist()}


@app.post("/encoder")
def encoder(request: Text) -> dict[str, list[float]]:
    ids, mask = np.array([request.input_ids], np.int64), np.array([request.attention_mask], np.int64)
    return {"y": text.run(None, {"input_ids": ids, "attention_mask": mask})[0][0].tolist()}
