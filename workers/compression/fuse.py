"""Fewer and cheaper nodes for the same function: fused attention and layer norms, and the fast form of GELU."""

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from workers.compression.graphs import Model


def fuse(model: Model, *, fast_gelu: bool) -> Model:
    """ONNX Runtime's fusions for encoders of BERT's kind, beyond those that it does itself when it loads a model.

    Args:
        model: with attention.
        fast_gelu: put the tanh form in place of GELU, which is cheaper and a little different.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions  # noqa: PLC0415 - slow to load, seldom needed
    from onnxruntime.transformers.optimizer import optimize_model  # noqa: PLC0415 - the same

    options = FusionOptions("bert")
    options.enable_gelu_approximation = fast_gelu
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        found = optimize_model(
            str(path), "bert", num_heads=0, hidden_size=0, optimization_options=options, opt_level=0,
        )  # fmt: skip
        fused: Model = found.model
    return fused
