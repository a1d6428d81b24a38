"""BentoML's service: batchable methods with its adaptive batcher. They take one parameter: ids and mask are stacked."""

from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType, Shape
from common import MAX_BATCH, session

Rows = Annotated[np.ndarray, DType("float32"), Shape((-1, 30))]
Pictures = Annotated[np.ndarray, DType("float32"), Shape((-1, 3, 64, 64))]
Texts = Annotated[np.ndarray, DType("int64"), Shape((-1, 2, 64))]
BATCHES = {"batchable": True, "max_batch_size": MAX_BATCH, "max_latency_ms": 2000}


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1024})
class Service:
    """Three models in one worker."""

    def __init__(self) -> None:
        self._mlp, self._cnn, self._encoder = session("mlp"), session("cnn"), session("encoder")

    @bentoml.api(**BATCHES)
    def mlp(self, x: Rows) -> np.ndarray:
        return self._mlp.run(None, {"x": x})[0]

    @bentoml.api(**BATCHES)
    def cnn(self, x: Pictures) -> np.ndarray:
        return self._cnn.run(None, {"x": x})[0]

    @bentoml.api(**BATCHES)
    def encoder(self, x: Texts) -> np.ndarray:
        ids, mask = np.ascontiguousarray(x[:, 0]), np.ascontiguousarray(x[:, 1])
        return self._encoder.run(None, {"input_ids": ids, "attention_mask": mask})[0]
