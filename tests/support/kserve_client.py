"""KServe's inference client in a process of its own, since its stubs and tritonclient's declare the same messages.

python -m tests.support.kserve_client HTTP_ADDRESS GRPC_ADDRESS: prints what the client made of the answers, as JSON.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

NUMBERS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
WORDS = np.array([["red"], ["blue"]], np.object_)
HEADERS = {"x-api-key": "good"}  # copied for each call: the client writes its own into them


def request(*, binary: bool) -> InferRequest:
    numbers = InferInput("numbers", [2, 3], "FP32")
    numbers.set_data_from_numpy(NUMBERS, binary_data=binary)
    words = InferInput("words", [2, 1], "BYTES")
    words.set_data_from_numpy(WORDS, binary_data=binary)
    parameters = {"binary_data_output": binary}
    return InferRequest(model_name="sum", infer_inputs=[numbers, words], request_id="r-1", parameters=parameters)


async def main(http: str, grpc: str) -> None:
    url = f"http://{http}"
    found: dict[str, object] = {}
    v1, v2 = InferenceRESTClient(RESTConfig(protocol="v1")), InferenceRESTClient(RESTConfig(protocol="v2"))
    found["ready"] = [
        await v2.is_server_live(url),
        await v2.is_server_ready(url),
        await v2.is_model_ready(url, "sum", headers=dict(HEADERS)),
        await v1.is_model_ready(url, "sum", headers=dict(HEADERS)),
    ]
    for binary in (True, False):
        answer = await v2.infer(url, request(binary=binary), model_name="sum", headers=dict(HEADERS))
        found[f"rest {binary=}"] = values(answer)
    instances = {"instances": [{"a": 1, "b": 2, "c": 3, "word": "red"}, {"a": 4, "b": 5, "c": 6, "word": "blue"}]}
    found["v1"] = await v1.infer(url, instances, model_name="sum", headers=dict(HEADERS))
    async with InferenceGRPCClient(grpc) as client:
        metadata = tuple(HEADERS.items())
        found["grpc ready"] = [await client.is_server_live(), await client.is_server_ready()]
        found["grpc model ready"] = await client.is_model_ready("sum", headers=metadata)
        for binary in (True, False):
            found[f"grpc {binary=}"] = values(await client.infer(request(binary=binary), headers=metadata))
    await v1.close()
    await v2.close()
    print(json.dumps(found))  # noqa: T201 - the caller reads it


def values(answer: object) -> list[object]:
    outputs = {output.name: output for output in answer.outputs}
    words = [w.decode() if isinstance(w, bytes) else w for w in outputs["echo"].as_numpy().ravel()]
    return [answer.id, outputs["value"].as_numpy().tolist(), words]


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
