"""python litserve_server.py PORT: one LitAPI a model, one worker each."""

import sys

import litserve
import numpy as np
from common import INPUTS, MAX_BATCH, MAX_DELAY_S, feed, session


class OnnxApi(litserve.LitAPI):
    """Batches of decoded rows."""

    def __init__(self, model: str, **options) -> None:
        super().__init__(**options)
        self._model = model

    def setup(self, device: str) -> None:
        self._session = session(self._model)

    def decode_request(self, request: dict) -> dict:  # the parameter has to have this name
        return request

    def batch(self, inputs: list[dict]) -> dict[str, np.ndarray]:
        return feed(self._model, inputs)

    def predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._session.run(None, inputs)[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, list[float]]:
        return {"y": output.tolist()}


if __name__ == "__main__":
    options = {"max_batch_size": MAX_BATCH, "batch_timeout": MAX_DELAY_S}
    apis = [OnnxApi(model, api_path=f"/{model}", **options) for model in INPUTS]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
