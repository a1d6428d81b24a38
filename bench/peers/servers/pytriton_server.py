"""python pytriton_server.py HTTP_PORT GRPC_PORT: Triton, which calls a Python function with its dynamic batches.

The wheel has the Python backend only; Triton's own ONNX Runtime backend may well be faster.
"""

import os
import sys
import sysconfig
from collections.abc import Callable

import numpy as np
from common import INPUTS, MAX_BATCH, OUTPUTS, session

# Triton's stub takes libpython from the loader's path, which must be this interpreter's and not the system's.
os.environ["LD_LIBRARY_PATH"] = f"{sysconfig.get_config_var('LIBDIR')}:{os.environ.get('LD_LIBRARY_PATH', '')}"

from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def runner(model: str) -> Callable[..., dict[str, np.ndarray]]:
    """The function that Triton calls with a batch."""
    opened = session(model)

    @batch
    def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {"y": opened.run(None, inputs)[0]}

    return infer


if __name__ == "__main__":
    http, grpc = map(int, sys.argv[1:])
    local = "127.0.0.1"
    config = TritonConfig(
        http_port=http, http_address=local, grpc_port=grpc, grpc_address=local, allow_metrics=False, log_verbose=0
    )
    with Triton(config=config) as triton:
        for model, inputs in INPUTS.items():
            triton.bind(
                model_name=model,
                infer_func=runner(model),
                inputs=[Tensor(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in inputs.items()],
                outputs=[Tensor(name="y", dtype=np.float32, shape=(OUTPUTS[model],))],
                config=ModelConfig(max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
                strict=False,
            )
        triton.serve()
