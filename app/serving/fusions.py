"""Which of ONNX Runtime's own fusions a session does without, since they make models slower on the CPU."""

import onnxruntime as ort

# The fused kernel adds and sums number by number, while LayerNormalization alone is vectorised: 0.13 ms for 64 x 384
# numbers, where the sum and the norm take 0.03 (ONNX Runtime 1.32).
_SLOW = "SkipLayerNormFusion"


def leave_slow_fusions_out(options: ort.SessionOptions) -> None:
    """For sessions of the CPU."""
    options.add_session_config_entry("optimization.disable_specified_optimizers", _SLOW)
