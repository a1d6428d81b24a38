"""ONNX Runtime inside the gateway: load, batch, run, and the wire forms of tensors.

The only room that imports onnxruntime.
"""
