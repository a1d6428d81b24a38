"""Fewer and cheaper nodes for the same function: fused attention, GELU as one node, constants worked out."""

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import helper

from workers.compression.graphs import Model, copied

_OWN = "com.microsoft"  # ONNX Runtime's domain, of the nodes that it fuses


def fuse(model: Model, *, fast_gelu: bool) -> Model:
    """Fusions for encoders of BERT's kind, beyond those that ONNX Runtime does itself when it loads a model.

    Args:
        model: with attention.
        fast_gelu: put the tanh form in place of GELU, which is cheaper and a little different.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions  # noqa: PLC0415 - slow to load, seldom needed
    from onnxruntime.transformers.optimizer import optimize_model  # noqa: PLC0415 - the same
    from onnxscript.rewriter import rewrite  # noqa: PLC0415 - the same
    from onnxscript.rewriter.ort_fusions.erfgelu import rules as gelu  # noqa: PLC0415 - the same

    options = FusionOptions("bert")
    options.enable_gelu_approximation = fast_gelu
    # Slower than what they take the place of: see app.serving.fusions. A product adds its bias by itself.
    options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = options.enable_bias_gelu = False
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(rewrite(model, gelu), path)  # torch writes GELU in a form that the optimizer does not know
        found = optimize_model(
            str(path), "bert", num_heads=0, hidden_size=0, optimization_options=options, opt_level=0,
        )  # fmt: skip
        fused: Model = found.model
    if _OWN not in {one.domain for one in fused.opset_import}:  # its optimizer forgets to say so
        fused.opset_import.append(helper.make_opsetid(_OWN, 1))
    return fused


def simplify(model: Model) -> Model:
    """Constants worked out, and nodes left out that do nothing, of a graph that an exporter has left them in."""
    from onnxslim import slim  # noqa: PLC0415 - slow to load, seldom needed

    slimmed: Model = slim(copied(model))
    return slimmed
