"""ONNX Runtime inside the gateway: load, batch, run, and the wire forms of tensors.

The only room that imports onnxruntime.
"""

import os

# ONNX Runtime uploads telemetry and keeps a device id in the home folder, unless told not to before its first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
