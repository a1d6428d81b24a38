"""PyTorch modules to ONNX by torch's own exporter."""

import contextlib
import io
import logging
import warnings

import onnx
import torch
from torch import nn

from app.core.signature import Signature
from workers.export.graph import OPSET


def export_module(
    module: nn.Module, example: torch.Tensor, signature: Signature, lengths: tuple[int, int] | None = None
) -> onnx.ModelProto:
    """Trace `module` in evaluation mode with a variable batch.

    Args:
        module: takes the signature's one input and gives its one output.
        example: a batch of two or more rows, for torch fixes an axis of size one.
        signature: names of the input and the output.
        lengths: the least and the most of the second axis, if it varies too.
    """
    axes = {0: torch.export.Dim("batch", min=1, max=2**20)}
    if lengths is not None:
        axes[1] = torch.export.Dim("length", min=lengths[0], max=lengths[1])
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(), (example,), dynamo=True, opset_version=OPSET, dynamic_shapes=(axes,), verbose=False,
            input_names=[signature.inputs[0].name], output_names=[signature.outputs[0].name],
        )  # fmt: skip
    if program is None:  # pragma: no cover - only without dynamo
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Remove source locations and stack traces, which name the trainer's folders."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
