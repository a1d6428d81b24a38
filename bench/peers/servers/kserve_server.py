"""python kserve_server.py PORT: KServe's Python server; ONNX Runtime runs on its event loop, as in its examples."""

import sys

import uvicorn
from common import INPUTS, session
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    """One session."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._session = session(model)
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        (y,) = self._session.run(None, {tensor.name: tensor.as_numpy() for tensor in payload.inputs})
        output = InferOutput(name="y", shape=list(y.shape), datatype="FP32")
        asked = payload.request_outputs
        output.set_data_from_numpy(y, binary_data=bool(asked and asked[0].binary_data))
        return InferResponse(response_id=payload.id or "1", model_name=self.name, infer_outputs=[output])


class LocalConfig(uvicorn.Config):
    """KServe listens on every address; the load is to stay on this machine."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **(options | {"host": "127.0.0.1"}))


if __name__ == "__main__":
    uvicorn.Config = LocalConfig
    server = ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1, access_log_format=None)
    server.start([OnnxModel(model) for model in INPUTS])
