"""MLServer's custom runtime: the numpy codec and one session a model."""

from common import session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """One session, in an inference worker."""

    async def load(self) -> bool:
        self._session = session(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (y,) = self._session.run(None, {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
