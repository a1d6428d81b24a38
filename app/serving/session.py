"""One ONNX Runtime session: opened, checked against its signature, and run on arrays in the signature's order."""

from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from app.core.errors import AimassError, Corrupt, DeadlineExceeded, InvalidTensor
from app.core.signature import Signature, Tensor
from app.serving.bfloat16 import runner
from app.serving.provider import Provider
from app.serving.runs import RunWatch
from app.serving.types import Tensors

ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class Session:
    """A model in memory. `threads` is what one run may use; calls from several threads at once are safe.

    `packed`: the file is one that `app.serving.packed` has made.
    """

    def __init__(
        self,
        onnx: Path,
        signature: Signature,
        threads: int,
        provider: Provider,
        watch: RunWatch,
        *,
        packed: bool = False,
    ) -> None:
        try:
            options = provider.session_options(threads, packed=packed)
            session = ort.InferenceSession(str(onnx), options, providers=provider.chain)
        except Exception as error:
            raise Corrupt(f"{onnx.name} cannot be loaded by ONNX Runtime: {error}") from error
        provider.check(session)
        _match(signature.inputs, session.get_inputs(), "input", onnx.name, exact=True)
        _match(signature.outputs, session.get_outputs(), "output", onnx.name, exact=False)
        self._watch = watch
        watch.opened(self)
        self._run = runner(session)
        self._arenas = provider.arenas if provider.arena else ""
        self._inputs = [tensor.name for tensor in signature.inputs]
        self._outputs = [tensor.name for tensor in signature.outputs]
        self._batched = signature.batched
        # What a model trained here cannot take is refused before; values may break an imported one in any of its nodes.
        self._refusals: tuple[type[Exception], ...] = (ort_errors.InvalidArgument,)
        self._foreign = signature.task == "inference"
        if self._foreign:
            self._refusals += (ort_errors.Fail, ort_errors.RuntimeException)

    def shrink(self, inputs: Tensors) -> None:
        """Run once more, and give back what ONNX Runtime keeps of earlier, larger runs."""
        if not self._arenas:
            return  # nothing is kept, and ONNX Runtime refuses to look for it
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", self._arenas)
        self._run(self._outputs, dict(zip(self._inputs, inputs, strict=True)), options)

    def run(self, inputs: Tensors) -> Tensors:
        """Run on arrays [rows, …], or any where the model does not batch.

        InvalidTensor if the graph refuses them; DeadlineExceeded if it took longer than a run may.
        """
        watch = self._watch
        running = watch.begin()
        try:
            outputs = self._run(self._outputs, dict(zip(self._inputs, inputs, strict=True)), running.options)
        except Exception as error:
            if running.ended:
                raise DeadlineExceeded(
                    "the run took longer than a run may and was ended: the model does not end for these values, or "
                    "AIMASS_SERVING_RUN_LIMIT_S is too short for it"
                ) from error
            if isinstance(error, self._refusals):
                raise InvalidTensor(f"the model cannot take these values: {error}") from error
            watch.failures += 1
            raise
        finally:
            watch.finish(running)
        watch.good()
        if not self._batched:
            return tuple(outputs)
        rows = inputs[0].shape[0]
        for name, output in zip(self._outputs, outputs, strict=True):
            if not output.shape or output.shape[0] != rows:
                wrong = f"output '{name}' has shape {list(output.shape)} for {rows} rows"
                if self._foreign:  # it answered its own rows as many, so that it is these values that make the others
                    raise InvalidTensor(f"the model cannot take these values: {wrong}")
                raise AimassError(wrong)
        return tuple(outputs)


def _match(declared: tuple[Tensor, ...], actual: list[Any], kind: str, file: str, *, exact: bool) -> None:
    found = {node.name: ONNX_TYPES.get(node.type, node.type) for node in actual}
    for tensor in declared:
        if found.get(tensor.name) != tensor.datatype:
            raise Corrupt(
                f"signature.json declares {kind} '{tensor.name}' as {tensor.datatype}, {file} has "
                f"{found.get(tensor.name, 'no such tensor')}; its {kind}s are {found}"
            )
    if exact and len(found) != len(declared):
        raise Corrupt(f"{file} has {kind}s {sorted(found)}, signature.json only {sorted(t.name for t in declared)}")
