"""Where a job measures: on the processor, or on its GPU if it asks for one, as a gateway there would run models."""

from onnx import TensorProto, helper

from app.core.errors import InvalidSpec
from app.core.host import host_name
from app.serving.provider import Provider, lacks_cuda
from workers.export.runtime import open_session

CPU, _GPU = "cpu", "cuda:0"  # a worker shows its jobs one GPU, or all of them
_REMEDY = "use auto, which measures on the processor"


def measuring_device(asked: str) -> str:
    """`cuda:0` for a job that asks for `cuda`, `cpu` for every other: `auto` learns on a GPU and measures as `cpu`.

    For which gateways a version is to be fast is for its owner to say, and most serve from the processor.

    Raises:
        InvalidSpec: ONNX Runtime cannot run models on a GPU here.
    """
    if asked != "cuda":
        return CPU
    if (why := lacks_cuda() or _cannot_run()) is not None:
        raise InvalidSpec.at("resources", "device", msg=f"{why}, or {_REMEDY}")
    return _GPU


def _cannot_run() -> str | None:
    """Why the smallest model does not run there, though ONNX Runtime has CUDA; None if it does."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        host_name(_GPU)
        return Provider.on_gpu(_GPU).fell_back(open_session(model.SerializeToString(), 1, _GPU))
    except LookupError as error:
        return str(error)
